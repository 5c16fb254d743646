"""Makes what a model serves what its folder holds: loads aside, swaps in one write, retires what is not wanted."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.observability.loads import LoadCounts
from inferd_server.repository import loader, model_config, version_policy
from inferd_server.repository.changes import changes
from inferd_server.repository.complaints import Complaints
from inferd_server.repository.dependencies import cycle_through, load_order
from inferd_server.repository.lifecycle import ModelEntry, State, VersionEntry
from inferd_server.repository.model_config import DeclaredConfig
from inferd_server.repository.override import Override
from inferd_server.repository.response_cache import ResponseCache
from inferd_server.repository.retirement import Retirement
from inferd_server.repository.scan import Fingerprint, ModelDirectory
from inferd_server.repository.servable import Servable
from inferd_server.repository.table import ModelTable
from inferd_server.runtime.backend import Backend
from inferd_server.scheduling.observer import Observe

_LOG = logging.getLogger(__name__)


class Rollout:
    """Changes the table of models. Its changes take turns: the caller sees to that."""

    def __init__(
        self,
        table: ModelTable,
        backend: Backend,
        server: ServerConfig,
        responses: ResponseCache,
        complaints: Complaints,
        observe: Observe | None,
    ) -> None:
        self.loads = LoadCounts()
        self._table = table
        self._platform = backend.platform
        self._complaints = complaints
        self._retirement = Retirement(server.exit_timeout_secs)
        load = functools.partial(
            loader.load, models=table, backend=backend, server=server, responses=responses, observe=observe
        )
        self._load = self.loads.counted(load)

    def bring(
        self,
        directory: ModelDirectory,
        directories: Mapping[str, ModelDirectory],
        *,
        override: Override | None = None,
        retry: bool = False,
    ) -> Sequence[str]:
        """Makes a model's served versions those of its folder. Returns why, where any of them is not READY then."""
        name = directory.name
        present = self._table.models.get(name, ModelEntry())
        try:
            declared = self._declared(directory, override)
            if declared.steps:
                self._check_cycle(directory.name, declared, directories)
            wanted = self._wanted(directory, declared, present)
        except LoadError as error:
            why = str(error)
            self._complaints.say(name, why)
            self._table.update(name, lambda before: replace(before, failure=why))
            return [why]
        todo = changes(present.versions, wanted, retry=retry, reload=override is not None)
        if not todo.load and not todo.retire and not present.failure:
            return []
        fresh = {version: VersionEntry(State.LOADING) for version in todo.load if _servable(present, version) is None}
        self._table.update(name, lambda before: replace(before, versions=_ordered(before.versions, fresh), failure=""))
        loaded = {
            version: self._load_version(directory, version, declared, wanted[version] if not override else ())
            for version in todo.load
        }
        return self._swap(name, wanted, loaded, declared.version_labels)

    def in_order(self, directories: Mapping[str, ModelDirectory], names: Iterable[str]) -> Sequence[ModelDirectory]:
        """The models named and those that they run, as far as they are there: what is run before what runs it."""
        order = load_order(names, lambda name: self.steps_of(directories[name]) if name in directories else ())
        return [directories[name] for name in order if name in directories]

    def steps_of(self, directory: ModelDirectory, override: Override | None = None) -> Sequence[str]:
        """The models that a folder's steps name; none where it cannot be read, which its own load will say."""
        try:
            return [step.model for step in self._declared(directory, override).steps]
        except LoadError:
            return []

    def loaded_steps(self) -> Mapping[str, frozenset[str]]:
        """The models that can be called, each with the models that its steps name."""
        return {
            name: frozenset[str]().union(*(servable.steps.model_names for servable in servables if servable.steps))
            for name, model in self._table.models.items()
            if (servables := [entry.servable for entry in model.versions.values() if entry.servable])
        }

    def users_first(self) -> Sequence[str]:
        """Every model in the table, an ensemble before those that it runs."""
        steps = self.loaded_steps()
        order = load_order(self._table.models, lambda name: steps.get(name, ()))
        return [name for name in reversed(order) if name in self._table.models]

    def retire(self, versions: Mapping[int, VersionEntry]) -> list[threading.Thread]:
        """Has versions finish what they have accepted, and frees them; a thread for each, which ends with that."""
        return [self._retirement.retire(entry.servable) for entry in versions.values() if entry.servable]

    def retire_user(self, model: ModelEntry) -> None:
        """Retires a model that others may be retired after; an ensemble ends what it has begun before they are."""
        closing = self.retire(model.versions)
        if any(entry.servable and entry.servable.steps for entry in model.versions.values()):
            for thread in closing:
                thread.join()

    def wait(self, ends: float) -> bool:
        """Until `ends`, on `time.monotonic`'s clock, for what was retired. Whether all of it has ended."""
        return self._retirement.wait(ends)

    def _check_cycle(self, name: str, declared: DeclaredConfig, directories: Mapping[str, ModelDirectory]) -> None:
        """Raises LoadError where an ensemble would run itself: by what serves, and by the folders of what does not."""
        loaded = self.loaded_steps()

        def steps_of(model: str) -> Iterable[str]:
            if model == name:
                return [step.model for step in declared.steps]
            if model in loaded:
                return loaded[model]
            return self.steps_of(directories[model]) if model in directories else ()

        cycle = cycle_through(name, steps_of)
        if cycle:
            raise LoadError(f"its steps lead back to itself: {' runs '.join(map(repr, cycle))}")

    def _declared(self, directory: ModelDirectory, override: Override | None) -> DeclaredConfig:
        if override:
            return model_config.read_json(override.config, directory.path, directory.name, self._platform)
        return model_config.read(directory.config, directory.name, self._platform)

    def _wanted(
        self, directory: ModelDirectory, declared: DeclaredConfig, present: ModelEntry
    ) -> Mapping[int, Fingerprint]:
        """The versions to serve: those of the policy, and those that a label names, for as long as they are there."""
        labels = {**declared.version_labels, **present.labels}
        labelled = set(labels.values()) & set(directory.versions)
        versions = sorted({*version_policy.served(directory.versions, declared.version_policy), *labelled})
        if not versions:
            raise LoadError("it has no version folder")
        # An ensemble is made of its steps' models too: with them it is held against them anew.
        steps = tuple(mark for name in sorted({step.model for step in declared.steps}) for mark in self._marks(name))
        return {version: directory.fingerprint(version) + steps for version in versions}

    def _marks(self, name: str) -> Fingerprint:
        """What the READY versions of a model are made of."""
        versions = self._table.models.get(name, ModelEntry()).versions
        return tuple(
            (f"{name}/{version}/{file}", size, changed_ns, inode)
            for version, entry in versions.items()
            if entry.servable
            for file, size, changed_ns, inode in (("", 0, 0, 0), *entry.fingerprint)
        )

    def _swap(
        self,
        name: str,
        wanted: Mapping[int, Fingerprint],
        loaded: Mapping[int, VersionEntry],
        declared_labels: Mapping[str, int],
    ) -> Sequence[str]:
        """Puts what was loaded in the place of what is not wanted any more, in one write."""
        after: dict[str, ModelEntry] = {}

        def change(before: ModelEntry) -> ModelEntry:
            versions = _ordered(before.versions, {key: _kept(before, key, entry) for key, entry in loaded.items()})
            # Only when all that is wanted can be called does anything else go.
            if all(versions[version].servable for version in wanted):
                versions = {version: entry for version, entry in versions.items() if version in wanted}
            # What a request said of a label goes before what the config says.
            asked = {**declared_labels, **before.labels}
            labels = {label: version for label, version in asked.items() if _is_ready(versions, version)}
            for label in sorted(set(asked) - set(labels)):
                _LOG.warning("model '%s' has no version %d for its label '%s'", name, asked[label], label)
            after[name] = ModelEntry(versions, labels=labels)
            return after[name]

        before = self._table.update(name, change)
        entry = after[name]
        serving = {version.servable for version in entry.versions.values()}
        self.retire({number: version for number, version in before.versions.items() if version.servable not in serving})
        self._complaints.say(name, "")
        return [
            f"version {version}: {entry.versions[version].reason}"
            for version in wanted
            if entry.versions[version].servable is None or entry.versions[version].reason
        ]

    def _load_version(
        self, directory: ModelDirectory, version: int, declared: DeclaredConfig, fingerprint: Fingerprint
    ) -> VersionEntry:
        name, began = directory.name, time.monotonic()
        try:
            servable = self._load(name, version, directory.path / str(version), declared)
        except LoadError as error:
            _LOG.error("model '%s' version %d is unavailable: %s", name, version, error)
            return VersionEntry(State.UNAVAILABLE, str(error), fingerprint=fingerprint)
        except Exception as error:  # noqa: BLE001 - a defect met by one model is no reason to stop the others
            _LOG.exception("model '%s' version %d is unavailable", name, version)
            return VersionEntry(State.UNAVAILABLE, f"loading failed: {error}", fingerprint=fingerprint)
        _LOG.info(
            "model '%s' version %d is ready on %s, %s, in %.2f s",
            name,
            version,
            servable.model.provider,
            f"max batch size {servable.config.max_batch_size}"
            if servable.config.batched
            else f"unbatched: {_why_unbatched(servable)}",
            time.monotonic() - began,
        )
        return VersionEntry(State.READY, servable=servable, fingerprint=fingerprint)


def _why_unbatched(servable: Servable) -> str:
    if servable.steps:
        return "its config.pbtxt has no max_batch_size"
    return model_config.why_not_batchable(servable.signature)


def _servable(model: ModelEntry, version: int) -> Servable | None:
    entry = model.versions.get(version)
    return entry.servable if entry else None


def _ordered(versions: Mapping[int, VersionEntry], others: Mapping[int, VersionEntry]) -> Mapping[int, VersionEntry]:
    return dict(sorted({**versions, **others}.items()))


def _kept(before: ModelEntry, version: int, entry: VersionEntry) -> VersionEntry:
    """The entry after a load: where that failed, the one that served, which says why it still does."""
    old = before.versions.get(version)
    if entry.servable is None and old is not None and old.servable is not None:
        reason = f"its files have changed, and were not taken: {entry.reason}"
        return VersionEntry(State.READY, reason, old.servable, entry.fingerprint)
    return entry


def _is_ready(versions: Mapping[int, VersionEntry], version: int) -> bool:
    return version in versions and versions[version].servable is not None
