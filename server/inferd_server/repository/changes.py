"""What is to be done so that a model's served versions are those in the repository: a pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferd_server.repository.lifecycle import State, VersionEntry
from inferd_server.repository.scan import Fingerprint


@dataclass(frozen=True, slots=True)
class Changes:
    """Versions to load, beside those that serve, and versions to retire once everything wanted is READY."""

    load: tuple[int, ...]
    retire: tuple[int, ...]


def changes(
    present: Mapping[int, VersionEntry], wanted: Mapping[int, Fingerprint], *, retry: bool, reload: bool = False
) -> Changes:
    """Compares the versions in the table with those wanted, which are told apart by what they are made of.

    What failed is tried again when its files change, or to `retry`. To `reload` is to load what is unchanged too.
    """

    def stale(version: int, fingerprint: Fingerprint) -> bool:
        entry = present.get(version)
        if entry is None or reload or entry.fingerprint != fingerprint:
            return True
        return retry and (entry.state is not State.READY or bool(entry.reason))

    return Changes(
        load=tuple(version for version, fingerprint in wanted.items() if stale(version, fingerprint)),
        retire=tuple(version for version in present if version not in wanted),
    )
