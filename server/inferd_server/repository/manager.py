"""The models of a server: loads them, finds them, says whether they are ready, and closes them."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from inferd_server.config import ServerConfig
from inferd_server.errors import ConfigurationError, LoadError
from inferd_server.observability.loads import LoadCounts
from inferd_server.repository import lifecycle, loader, model_config, version_policy
from inferd_server.repository.lifecycle import ModelEntry, State, VersionEntry
from inferd_server.repository.model_config import DeclaredConfig
from inferd_server.repository.scan import ModelDirectory, scan
from inferd_server.repository.servable import Servable
from inferd_server.runtime.backend import Backend
from inferd_server.scheduling.observer import Observe

_LOG = logging.getLogger(__name__)


class RepositoryManager:
    """The models in a repository.

    Loading writes whole entries; lookups, from any thread and without a lock, see an entry before or after.
    Raises ConfigurationError where the repository cannot be read, is empty, or lacks a required model.
    """

    def __init__(self, config: ServerConfig, backend: Backend, observe: Observe | None = None) -> None:
        self._directories = scan(config.model_repository)
        missing = sorted(set(config.required_model) - set(self._directories))
        if missing:
            raise ConfigurationError(
                f"--required-model {missing[0]} is not in the repository, which holds {sorted(self._directories)}"
            )
        self._required = config.required_model
        self._platform = backend.platform
        self.loads = LoadCounts()
        self._load = self.loads.counted(functools.partial(loader.load, backend=backend, server=config, observe=observe))
        self._models = {name: ModelEntry(failure="it is loading") for name in self._directories}
        self._loaded = False
        self.generation = 0
        """Grows with every change of what `find` answers."""

    @property
    def models(self) -> Mapping[str, ModelEntry]:
        """Every model in the repository, by name."""
        return self._models

    def find(self, name: str, version: str) -> Servable:
        """The version to call; raises as `lifecycle.find` does."""
        return lifecycle.find(self._models, name, version)

    def ready(self) -> bool:
        """Whether every required model can be called; with none required, whether any can, once all have been tried."""
        if not self._required:
            return self._loaded and any(model.latest for model in self._models.values())
        return all(self._models[name].latest for name in self._required)

    def load_all(self) -> None:
        """Loads every version that is served. One that fails keeps its reason and leaves the others alone."""
        for directory in self._directories.values():
            self._load_model(directory)
        self._loaded = True

    def close(self, timeout: float) -> bool:
        """Finishes what was accepted, within `timeout` seconds in all, and frees every model.

        False where a run did not end in time: its thread still needs the interpreter.
        """
        ends = time.monotonic() + timeout
        servables = [entry.servable for model in self._models.values() for entry in model.versions.values()]
        idle = [servable.close(max(0.0, ends - time.monotonic())) for servable in servables if servable]
        return all(idle)

    def _load_model(self, directory: ModelDirectory) -> None:
        try:
            declared = model_config.read(directory.config, directory.name, self._platform)
            versions = version_policy.served(directory.versions, declared.version_policy)
            if not versions:
                raise LoadError("it has no version folder")
        except LoadError as error:
            _LOG.error("model '%s' is unavailable: %s", directory.name, error)
            self._put(directory.name, ModelEntry(failure=str(error)))
            return
        self._put(directory.name, ModelEntry({version: VersionEntry(State.LOADING) for version in versions}))
        for version in versions:
            entry = self._load_version(directory.path, directory.name, version, declared)
            self._put(directory.name, self._models[directory.name].with_version(version, entry))

    def _put(self, name: str, model: ModelEntry) -> None:
        self._models[name] = model
        # After the entry: whoever sees the new generation sees the entry too.
        self.generation += 1

    def _load_version(self, folder: Path, name: str, version: int, declared: DeclaredConfig) -> VersionEntry:
        began = time.monotonic()
        try:
            servable = self._load(name, version, folder / str(version), declared)
        except LoadError as error:
            _LOG.error("model '%s' version %d is unavailable: %s", name, version, error)
            return VersionEntry(State.UNAVAILABLE, str(error))
        except Exception as error:  # noqa: BLE001 - a defect met by one model is no reason to stop the others
            _LOG.exception("model '%s' version %d is unavailable", name, version)
            return VersionEntry(State.UNAVAILABLE, f"loading failed: {error}")
        _LOG.info(
            "model '%s' version %d is ready on %s, %s, in %.2f s",
            name,
            version,
            servable.model.provider,
            f"max batch size {servable.config.max_batch_size}"
            if servable.config.batched
            else f"unbatched: {model_config.why_not_batchable(servable.signature)}",
            time.monotonic() - began,
        )
        return VersionEntry(State.READY, servable=servable)
