"""The models of a server: which of them are served, as the repository, the settings and the operator say."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from inferd_server.config import ControlMode, ServerConfig
from inferd_server.errors import ConfigurationError, ControlOff, LoadFailed, ModelNotFound, ModelNotReady
from inferd_server.repository.complaints import Complaints
from inferd_server.repository.dependencies import unused_without
from inferd_server.repository.lifecycle import ModelEntry, relabelled, unloaded, unloading
from inferd_server.repository.override import Override, written
from inferd_server.repository.response_cache import ResponseCache
from inferd_server.repository.rollout import Rollout
from inferd_server.repository.scan import ModelDirectory, read_directory, scan
from inferd_server.repository.servable import Servable
from inferd_server.repository.table import ModelTable
from inferd_server.runtime.backend import Backend
from inferd_server.scheduling.observer import Observe

_LOG = logging.getLogger(__name__)


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
        self.responses = ResponseCache(config.response_cache_bytes)
        """What the runs of all models gave, of those that ask for it."""
        self._table = ModelTable()
        self._complaints = Complaints()
        self._rollout = Rollout(self._table, backend, config, self.responses, self._complaints, observe)
        self.loads = self._rollout.loads
        self._changing = threading.Lock()
        self._started = False
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
            for directory in self._rollout.in_order(directories, self._first):
                self._rollout.bring(directory, directories)
            self._started = True

    def poll(self) -> None:
        """Makes what is served what lies in the repository.

        A repository that cannot be read, or is empty all at once, is taken for one that is away: what serves, goes on.
        """
        try:
            directories = scan(self._repository)
        except ConfigurationError as error:
            self._complaints.say("", str(error))
            return
        self._complaints.say("", "")
        with self._changing:
            for directory in self._rollout.in_order(directories, directories):
                self._rollout.bring(directory, directories)
            for name in self._rollout.users_first():
                if name not in directories:
                    _LOG.info("model '%s' is unloaded: it is not in the repository any more", name)
                    self._rollout.retire_user(self._table.update(name, lambda _: None))
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
            for step in self._rollout.in_order(directories, self._rollout.steps_of(directory, override)):
                if step.name != name and not self.can_be_called(step.name, ""):
                    self._rollout.bring(step, directories, retry=True)
            failures = self._rollout.bring(directory, directories, override=override, retry=True)
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
            unused = unused_without(name, self._rollout.loaded_steps(), self._asked) if dependents else ()
            for model in (name, *unused):
                before = self._table.update(model, unloading)
                closing = self._rollout.retire(before.versions)
                _LOG.info("model '%s' is being unloaded", model)
                for thread in closing:
                    thread.join()
                self._table.update(model, unloaded)
        self._changed()

    def set_label(self, name: str, label: str, version: int) -> None:
        """Makes a label a name for a version that is READY; 0 takes the label away.

        Raises InvalidRequest where the label could be mistaken for a version, ModelNotFound and ModelNotReady where
        there is no such version to call.
        """
        self._table.update(name, lambda model: relabelled(model, name, label, version))
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
        models = [self._table.models[name] for name in self._rollout.users_first()]
        servables = [entry.servable for model in models for entry in model.versions.values()]
        idle = [servable.close(max(0.0, ends - time.monotonic())) for servable in servables if servable]
        return self._rollout.wait(ends) and all(idle) and at_rest

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
