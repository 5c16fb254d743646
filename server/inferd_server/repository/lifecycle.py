"""The states of a version, and the table of all versions that requests are looked up in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from inferd_server.errors import InvalidRequest, ModelNotFound, ModelNotReady
from inferd_server.repository.servable import Servable


class State(StrEnum):
    """Where a version is. The names are those of RPC RepositoryIndex."""

    LOADING = "LOADING"
    """Being read, checked and warmed; not called yet."""
    READY = "READY"
    """Answers requests."""
    UNAVAILABLE = "UNAVAILABLE"
    """Failed to load, or was unloaded; the reason says which."""


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A version in one state. `servable` is there in READY alone; `reason` says why in UNAVAILABLE."""

    state: State
    reason: str = ""
    servable: Servable | None = None


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model: its served versions in rising order. `failure` says why it has none."""

    versions: Mapping[int, VersionEntry] = field(default_factory=dict)
    failure: str = ""

    @property
    def latest(self) -> Servable | None:
        """The highest version that is READY: what a request without a version reaches."""
        ready = [entry.servable for _, entry in sorted(self.versions.items()) if entry.servable]
        return ready[-1] if ready else None

    def with_version(self, version: int, entry: VersionEntry) -> ModelEntry:
        """A copy in which one version has another state."""
        return ModelEntry(dict(sorted({**self.versions, version: entry}.items())), self.failure)


def find(models: Mapping[str, ModelEntry], name: str, version: str) -> Servable:
    """The servable of a model's version; of its latest for an empty `version`.

    Raises InvalidRequest where the version is no whole number, ModelNotFound where the model or version is not served,
    ModelNotReady where it is known but cannot be called.
    """
    number = parse_version(name, version)
    model = models.get(name)
    if model is None:
        raise ModelNotFound(f"model '{name}' is not known: expected one of {sorted(models)}")
    if number is None:
        servable = model.latest
        if servable is None:
            raise ModelNotReady(name, None, model.failure or "; ".join(map(_why, model.versions.items())))
        return servable
    entry = model.versions.get(number)
    if entry is None:
        raise ModelNotFound(f"model '{name}' has no version {number} that is served: expected {_listed(model)}")
    if entry.servable is None:
        raise ModelNotReady(name, number, entry.reason or "it is loading")
    return entry.servable


def parse_version(name: str, version: str) -> int | None:
    """A version as requests write it: None for the empty string.

    Raises InvalidRequest where it is no whole number.
    """
    if not version:
        return None
    try:
        return int(version)
    except ValueError:
        raise InvalidRequest(
            f"version '{version}' of model '{name}' is expected to be a whole number, or empty"
        ) from None


def _why(version: tuple[int, VersionEntry]) -> str:
    number, entry = version
    return f"version {number}: {entry.reason or 'it is loading'}"


def _listed(model: ModelEntry) -> str:
    return ", ".join(map(str, model.versions)) or "none: " + model.failure
