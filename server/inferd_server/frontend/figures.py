"""Everything that one server process has counted, as one value that can travel between processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from inferd_server.core.inference import InferenceCore
from inferd_server.observability.loads import Loads
from inferd_server.observability.statistics import Duration, Snapshot
from inferd_server.repository.manager import RepositoryManager
from inferd_server.repository.response_cache import CacheStatistics


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """A version that can be called."""

    name: str
    version: int
    provider: str
    pending: int
    """Requests that wait."""
    statistics: Snapshot
    cache: CacheStatistics


@dataclass(frozen=True, slots=True)
class Figures:
    """A process: its versions, by model and in rising order, and what concerns none of them."""

    versions: tuple[VersionFigures, ...]
    not_ready: tuple[tuple[str, int], ...]
    """Names and versions that are known and cannot be called."""
    refusals: Mapping[str, Duration]
    """By reason: requests that were refused before it was known which version they are for."""
    loads: Mapping[tuple[str, int], Loads]
    """By model and version."""
    resident_bytes: int | None
    """What the process holds in memory; None where the system does not tell."""


Source: TypeAlias = Callable[[], Mapping[int, Figures]]
"""The figures of every worker that answers, by its number."""


def collect(repository: RepositoryManager, core: InferenceCore) -> Figures:
    """The figures of this process. From any thread."""
    # A copy: models may come while this looks.
    entries = [
        (name, version, entry)
        for name, model in sorted(repository.models.items())
        for version, entry in model.versions.items()
    ]
    return Figures(
        versions=tuple(
            VersionFigures(
                name,
                version,
                entry.servable.model.provider,
                entry.servable.batcher.pending,
                entry.servable.batcher.statistics.snapshot(),
                repository.responses.statistics(name, version),
            )
            for name, version, entry in entries
            if entry.servable
        ),
        not_ready=tuple((name, version) for name, version, entry in entries if not entry.servable),
        refusals=core.refusals.snapshot(),
        loads=repository.loads.snapshot(),
        resident_bytes=_resident_bytes(),
    )


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        # A changed root without /proc.
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
