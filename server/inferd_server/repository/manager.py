"""The models of a server: loads them beside those that serve, swaps them in whole, and lets the former ones drain."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from inferd_server.config import ControlMode, ServerConfig
from inferd_server.errors import (
    ConfigurationError,
    ControlOff,
    InvalidRequest,
    LoadError,
    LoadFailed,
    ModelNotFound,
    ModelNotReady,
)
from inferd_server.observability.loads import LoadCounts
from inferd_server.repository import loader, model_config, version_policy
from inferd_server.repository.changes import changes
from inferd_server.repository.dependencies import cycle_through, load_order, unused_without
from inferd_server.repository.labels import is_label
from inferd_server.repository.lifecycle import ModelEntry, State, VersionEntry
from inferd_server.repository.model_config import DeclaredConfig
from inferd_server.repository.override import Override, written
from inferd_server.repository.response_cache import ResponseCache
from inferd_server.repository.retirement import Retirement
from inferd_server.repository.scan import Fingerprint, ModelDirectory, read_directory, scan
from inferd_server.repository.servable import Servable
from inferd_server.repository.table import ModelTable
from inferd_server.runtime.backend import Backend
from inferd_server.scheduling.observer import Observe

_LOG = logging.getLogger(__name__)

_UNLOADED = "it was unloaded"


class RepositoryManager:
    """The models in a repository.

    A load happens beside the versions that serve: read, checked, warmed, and only then swapped in, in one write. Where
    it fails, what served before goes on. Loads and unloads take turns; lookups wait for nothing.
    Raises ConfigurationError where the repository cannot be read, is empty, or lacks a required model.
    """

    def __init__(self, config: ServerConfig, backend: Backend, observe: Observe | None = None) -> None:
        self._repository = config.model_repository
        self._mode = config.model_control_mode
        self._required = config.required_model
        self._platform = backend.platform
        self.responses = ResponseCache(config.response_cache_bytes)
        """What the runs of all models gave, of those that ask for it."""
        self.loads = LoadCounts()
        self._table = ModelTable()
        load = functools.partial(
            loader.load,
            models=self._table,
            backend=backend,
            server=config,
            responses=self.responses,
            observe=observe,
        )
        self._load = self.loads.counted(load)
        self._changing = threading.Lock()
        self._retirement = Retirement(config.exit_timeout_secs)
        self._started = False
        self._said: dict[str, str] = {}
        self._changed: Callable[[], None] = lambda: None
        directories = scan(self._repository, may_be_empty=self._mode is not ControlMode.NONE)
        for flag, names in (("--required-model", config.required_model), ("--load-model", config.load_model)):
            for name in sorted(set(names) - set(directories)):
                raise ConfigurationError(f"{flag} {name} is not in the repository, which holds {sorted(directories)}")
        self._first = config.load_model if self._mode is ControlMode.EXPLICIT else tuple(directories)
        self._asked = set(self._first)
        """Models that are loaded for themselves, and not only as steps of an ensemble."""
        for name in self._first:
            self._table.update(name, lambda _: ModelEntry(failure="it is loading"))

    @property
    def models(self) -> Mapping[str, ModelEntry]:
        """Every model that was loaded, or failed to, by name."""
        return self._table.models

    @property
    def generation(self) -> int:
        """Grows with every change of what `find` answers."""
        return self._table.generation

    @property
    def polls(self) -> bool:
        """Whether `poll` is to be called now and then."""
        return self._mode is ControlMode.POLL

    def find(self, name: str, version: str) -> Servable:
        """The version to call; raises as `lifecycle.find` does."""
        return self._table.find(name, version)

    def ready(self) -> bool:
        """Whether every required model can be called.

        With none required: whether any can, once all have been tried; under explicit control, which may begin with no
        model at all, whether those to be loaded have been tried.
        """
        models = self._table.models
        if self._required:
            return all(self.can_be_called(name, "") for name in self._required)
        if self._mode is ControlMode.EXPLICIT and not self._first:
            return self._started
        return self._started and any(model.latest for model in models.values())

    def can_be_called(self, name: str, version: str) -> bool:
        """Whether a version is READY, and, of an ensemble, every model that it runs.

        Raises InvalidRequest as `find` does.
        """
        try:
            steps = self.find(name, version).steps
            if steps is None:
                return True
            steps.check()
        except (ModelNotFound, ModelNotReady):
            return False
        return all(self.can_be_called(step.model, step.version_text) for step in steps.steps)

    def on_change(self, tell: Callable[[], None]) -> None:
        """From here on `tell` is called, from any thread, whenever models were loaded or unloaded."""
        self._changed = tell

    def start(self) -> None:
        """Loads what is to be served from the beginning, and the models of its steps before each ensemble.

        What fails keeps its reason and leaves the others alone.
        """
        directories = scan(self._repository, may_be_empty=self._mode is not ControlMode.NONE)
        with self._changing:
            for directory in self._in_order(directories, self._first):
                self._bring(directory, directories)
            self._started = True

    def poll(self) -> None:
        """Makes what is served what lies in the repository.

        A repository that cannot be read, or is empty all at once, is taken for one that is away: what serves, goes on.
        """
        try:
            directories = scan(self._repository)
        except ConfigurationError as error:
            self._say("", str(error))
            return
        self._say("", "")
        with self._changing:
            for directory in self._in_order(directories, directories):
                self._bring(directory, directories)
            for name in self._users_first():
                if name not in directories:
                    _LOG.info("model '%s' is unloaded: it is not in the repository any more", name)
                    self._retire_user(self._table.update(name, lambda _: None))
        self._changed()

    def load(self, name: str, override: Override | None = None) -> None:
        """Loads a model, or what has changed of it; with an `override`, all of it as that says.

        Of an ensemble, the models of its steps that are not READY are loaded first.
        Raises ControlOff, ModelNotFound where it is not in the repository, and LoadFailed where a version that is to be
        served did not load; those that served before still do.
        """
        self._check_control()
        with self._changing, self._directory(name, override) as directory:
            self._asked.add(name)
            directories = scan(self._repository, may_be_empty=True)
            for step in self._in_order(directories, self._steps(directory, override)):
                if step.name != name and not self.can_be_called(step.name, ""):
                    self._bring(step, directories, retry=True)
            failures = self._bring(directory, directories, override=override, retry=True)
        self._changed()
        if failures:
            raise LoadFailed(f"model '{name}' failed to load: {'; '.join(failures)}")

    def unload(self, name: str, *, dependents: bool = False) -> None:
        """Unloads every version of a model, and returns when they have finished what they had accepted.

        With `dependents` the models of an ensemble's steps go too, but for those that another ensemble runs or that
        were loaded for themselves.
        Raises ControlOff, and ModelNotFound where it is not loaded.
        """
        self._check_control()
        with self._changing:
            if name not in self._table.models:
                raise ModelNotFound(f"model '{name}' is not loaded: loaded are {sorted(self._table.models)}")
            self._asked.discard(name)
            unused = unused_without(name, self._loaded_steps(), self._asked) if dependents else ()
            for model in (name, *unused):
                before = self._table.update(model, _unloading)
                closing = self._retire(before.versions)
                _LOG.info("model '%s' is being unloaded", model)
                for thread in closing:
                    thread.join()
                self._table.update(model, _unloaded)
        self._changed()

    def set_label(self, name: str, label: str, version: int) -> None:
        """Makes a label a name for a version that is READY; 0 takes the label away.

        Raises InvalidRequest where the label could be mistaken for a version, ModelNotFound and ModelNotReady where
        there is no such version to call.
        """
        if not is_label(label):
            raise InvalidRequest(
                f"label '{label}' is expected to be letters, digits, '_', '-' and '.', the first of them a letter"
            )

        def change(model: ModelEntry) -> ModelEntry:
            if not model.versions:
                raise ModelNotFound(f"model '{name}' is not loaded: load it before its versions get labels")
            labels = {key: value for key, value in model.labels.items() if key != label}
            if version:
                entry = model.versions.get(version)
                if entry is None:
                    raise ModelNotFound(
                        f"model '{name}' serves no version {version}: expected one of {list(model.versions)}"
                    )
                if entry.servable is None:
                    raise ModelNotReady(name, version, entry.reason or "it is not loaded: a label moves to none such")
                labels[label] = version
            return replace(model, labels=labels)

        self._table.update(name, change)
        _LOG.info("label '%s' of model '%s' %s", label, name, f"is version {version}" if version else "is gone")

    def listed(self) -> Mapping[str, ModelEntry]:
        """Every model in the repository or loaded, by name: without versions where it was never loaded."""
        models = self._table.models
        with contextlib.suppress(ConfigurationError):
            names = scan(self._repository, may_be_empty=True)
            models = {name: ModelEntry(failure="it is not loaded") for name in names} | dict(models)
        return dict(sorted(models.items()))

    def close(self, timeout: float) -> bool:
        """Finishes what was accepted, within `timeout` seconds in all, and frees every model.

        False where a run did not end in time: its thread still needs the interpreter.
        """
        ends = time.monotonic() + timeout
        # For good: what is being loaded is waited for, and nothing is loaded any more.
        at_rest = self._changing.acquire(timeout=max(0.0, timeout))
        # An ensemble before the models that it runs, or what it has begun could not be ended.
        models = [self._table.models[name] for name in self._users_first()]
        servables = [entry.servable for model in models for entry in model.versions.values()]
        idle = [servable.close(max(0.0, ends - time.monotonic())) for servable in servables if servable]
        return self._retirement.wait(ends) and all(idle) and at_rest

    def _check_control(self) -> None:
        if self._mode is not ControlMode.EXPLICIT:
            raise ControlOff

    @contextlib.contextmanager
    def _directory(self, name: str, override: Override | None) -> Iterator[ModelDirectory]:
        if override and override.files:
            with written(name, override) as folder:
                yield read_directory(folder)
            return
        directories = scan(self._repository, may_be_empty=True)
        if name not in directories:
            raise ModelNotFound(f"model '{name}' is not in the repository, which holds {sorted(directories)}")
        yield directories[name]

    def _in_order(self, directories: Mapping[str, ModelDirectory], names: Iterable[str]) -> Sequence[ModelDirectory]:
        """The models named and those that they run, as far as they are there: what is run before what runs it."""
        order = load_order(names, lambda name: self._steps(directories[name]) if name in directories else ())
        return [directories[name] for name in order if name in directories]

    def _steps(self, directory: ModelDirectory, override: Override | None = None) -> Sequence[str]:
        """The models that a folder's steps name; none where it cannot be read, which its own load will say."""
        try:
            return [step.model for step in self._declared(directory, override).steps]
        except LoadError:
            return []

    def _loaded_steps(self) -> Mapping[str, frozenset[str]]:
        """The models that can be called, each with the models that its steps name."""
        return {
            name: frozenset[str]().union(*(servable.steps.model_names for servable in servables if servable.steps))
            for name, model in self._table.models.items()
            if (servables := [entry.servable for entry in model.versions.values() if entry.servable])
        }

    def _users_first(self) -> Sequence[str]:
        """Every model in the table, an ensemble before those that it runs."""
        steps = self._loaded_steps()
        order = load_order(self._table.models, lambda name: steps.get(name, ()))
        return [name for name in reversed(order) if name in self._table.models]

    def _retire_user(self, model: ModelEntry) -> None:
        """Retires a model that others may be retired after; an ensemble ends what it has begun before they are."""
        closing = self._retire(model.versions)
        if any(entry.servable and entry.servable.steps for entry in model.versions.values()):
            for thread in closing:
                thread.join()

    def _bring(
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
            self._say(name, why)
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

    def _check_cycle(self, name: str, declared: DeclaredConfig, directories: Mapping[str, ModelDirectory]) -> None:
        """Raises LoadError where an ensemble would run itself: by what serves, and by the folders of what does not."""
        loaded = self._loaded_steps()

        def steps_of(model: str) -> Iterable[str]:
            if model == name:
                return [step.model for step in declared.steps]
            if model in loaded:
                return loaded[model]
            return self._steps(directories[model]) if model in directories else ()

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
        self._retire(
            {number: version for number, version in before.versions.items() if version.servable not in serving}
        )
        self._say(name, "")
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

    def _retire(self, versions: Mapping[int, VersionEntry]) -> list[threading.Thread]:
        return [self._retirement.retire(entry.servable) for entry in versions.values() if entry.servable]

    def _say(self, name: str, failure: str) -> None:
        """Logs why a model, or the repository for an empty name, cannot be read: once, and again when it changes."""
        if failure and self._said.get(name) != failure:
            _LOG.error("%s: %s", f"model '{name}' is unavailable" if name else "the repository is away", failure)
        self._said[name] = failure


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


def _unloading(model: ModelEntry) -> ModelEntry:
    versions = {
        version: VersionEntry(State.UNLOADING) if entry.servable else entry for version, entry in model.versions.items()
    }
    return ModelEntry(versions, model.failure)


def _unloaded(model: ModelEntry) -> ModelEntry:
    versions = {
        version: VersionEntry(State.UNAVAILABLE, _UNLOADED) if entry.state is State.UNLOADING else entry
        for version, entry in model.versions.items()
    }
    return ModelEntry(versions, model.failure)
