"""The states of a version, and the table of all versions that requests are looked up in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from inferd_server.errors import InvalidRequest, ModelNotFound, ModelNotReady
from inferd_server.repository.labels import is_label
from inferd_server.repository.scan import Fingerprint
from inferd_server.repository.servable import Servable


class State(StrEnum):
    """Where a version is. The names are those of RPC RepositoryIndex."""

    LOADING = "LOADING"
    """Being read, checked and warmed; not called yet."""
    READY = "READY"
    """Answers requests."""
    UNLOADING = "UNLOADING"
    """Finishes what it has accepted; not called any more."""
    UNAVAILABLE = "UNAVAILABLE"
    """Failed to load, or was unloaded; the reason says which."""


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A version in one state. `servable` is there in READY alone.

    `reason` says why it is UNAVAILABLE; of one that is READY, why a newer file of the same version was not taken.
    `fingerprint` tells the files that it was made of, or that failed, from later ones.
    """

    state: State
    reason: str = ""
    servable: Servable | None = None
    fingerprint: Fingerprint = ()


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model: its versions in rising order, and the labels that are names for some of those that are READY.

    `failure` says why it has no versions, or why a change of its config.pbtxt was not taken.
    """

    versions: Mapping[int, VersionEntry] = field(default_factory=dict)
    failure: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def latest(self) -> Servable | None:
        """The highest version that is READY: what a request without a version reaches."""
        ready = [entry.servable for _, entry in sorted(self.versions.items()) if entry.servable]
        return ready[-1] if ready else None


def unloading(model: ModelEntry) -> ModelEntry:
    """The entry of a model whose versions finish what they have accepted."""
    versions = {
        version: VersionEntry(State.UNLOADING) if entry.servable else entry for version, entry in model.versions.items()
    }
    return ModelEntry(versions, model.failure)


def unloaded(model: ModelEntry) -> ModelEntry:
    """The entry once they have."""
    versions = {
        version: VersionEntry(State.UNAVAILABLE, "it was unloaded") if entry.state is State.UNLOADING else entry
        for version, entry in model.versions.items()
    }
    return ModelEntry(versions, model.failure)


def relabelled(model: ModelEntry, name: str, label: str, version: int) -> ModelEntry:
    """The entry of model `name` with a label for a version that is READY; without the label for version 0.

    Raises InvalidRequest where the label could be mistaken for a version, ModelNotFound and ModelNotReady where there
    is no such version to call.
    """
    if not is_label(label):
        raise InvalidRequest(
            f"label '{label}' is expected to be letters, digits, '_', '-' and '.', the first of them a letter"
        )
    if not model.versions:
        raise ModelNotFound(f"model '{name}' is not loaded: load it before its versions get labels")
    labels = {key: value for key, value in model.labels.items() if key != label}
    if version:
        entry = model.versions.get(version)
        if entry is None:
            raise ModelNotFound(f"model '{name}' serves no version {version}: expected one of {list(model.versions)}")
        if entry.servable is None:
            raise ModelNotReady(name, version, entry.reason or "it is not loaded: a label moves to none such")
        labels[label] = version
    return replace(model, labels=labels)


def find(models: Mapping[str, ModelEntry], name: str, version: str) -> Servable:
    """The servable of a model's version, by number or label; of its latest for an empty `version`.

    Raises InvalidRequest where `version` is neither a whole number nor a label, ModelNotFound where the model or
    version is not served, ModelNotReady where it is known but cannot be called.
    """
    model = models.get(name)
    if model is None:
        parse_version(name, version, {})
        raise ModelNotFound(f"model '{name}' is not known: expected one of {sorted(models)}")
    number = parse_version(name, version, model.labels)
    if number is None:
        servable = model.latest
        if servable is None:
            raise ModelNotReady(name, None, model.failure or "; ".join(map(_why, model.versions.items())))
        return servable
    entry = model.versions.get(number)
    if entry is None:
        raise ModelNotFound(f"model '{name}' has no version {number} that is served: expected {_listed(model)}")
    if entry.servable is None:
        raise ModelNotReady(name, number, _reason(entry))
    return entry.servable


def parse_version(name: str, version: str, labels: Mapping[str, int]) -> int | None:
    """A version as requests write it, a number or a label: None for the empty string.

    Raises InvalidRequest where it is neither.
    """
    if not version:
        return None
    number = labels.get(version)
    if number is not None:
        return number
    try:
        return int(version)
    except ValueError:
        known = f", or one of its labels {sorted(labels)}" if labels else ", and it has no labels"
        raise InvalidRequest(
            f"version '{version}' of model '{name}' is expected to be a whole number, or empty{known}"
        ) from None


def _why(version: tuple[int, VersionEntry]) -> str:
    number, entry = version
    return f"version {number}: {_reason(entry)}"


def _reason(entry: VersionEntry) -> str:
    return entry.reason or ("it is being unloaded" if entry.state is State.UNLOADING else "it is loading")


def _listed(model: ModelEntry) -> str:
    return ", ".join(map(str, model.versions)) or "none: " + model.failure
