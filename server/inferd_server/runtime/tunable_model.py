"""A model on the CPU whose session options are measured, once, before it is called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from inferd_protocol.tensors import Tensor

from inferd_server.errors import LoadError, ServerError
from inferd_server.runtime.backend import SessionSettings
from inferd_server.runtime.choosing import describe
from inferd_server.runtime.onnxruntime_model import OnnxRuntimeModel
from inferd_server.runtime.tuner import Tuner

_LOG = logging.getLogger(__name__)

Load = Callable[[Path, SessionSettings], OnnxRuntimeModel]


class TunableModel:
    """A RuntimeModel that becomes another session of its file when it is prepared.

    `run` is the session's own, so that a tuned model costs no more a run than any other. Raises LoadError as `load`
    does.
    """

    def __init__(self, path: Path, settings: SessionSettings, tuner: Tuner, load: Load) -> None:
        try:
            self._key = tuner.key(path, settings)
        except OSError as error:
            raise LoadError(f"{path.name} cannot be read: {error.strerror}") from error
        self._path = path
        self._settings = settings
        self._tuner = tuner
        self._load = load
        chosen = tuner.found(self._key, settings)
        self.tuned = ""
        self._take(settings if chosen is None else chosen)
        self._measured = chosen is not None
        if chosen is not None:
            self._say(chosen, "found earlier")

    def prepare(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """Measures, unless that was done before, and takes the settings that won."""
        if self._measured:
            return
        self._measured = True
        try:
            chosen = self._tuner.measure(
                self._key, self._settings, samples, lambda settings: self._load(self._path, settings)
            )
        except ServerError as error:
            _LOG.info("%s is not tuned: it does not run on made-up inputs: %s", self._name, error)
            return
        if chosen != self._settings:
            self._take(chosen)
        self._say(chosen, "measured")

    def close(self) -> None:
        """Frees the session."""
        self._model.close()

    def _take(self, settings: SessionSettings) -> None:
        self._model = self._load(self._path, settings)
        self.signature = self._model.signature
        self.provider = self._model.provider
        self.run = self._model.run

    def _say(self, chosen: SessionSettings, how: str) -> None:
        self.tuned = describe(self._settings, chosen)
        _LOG.info("%s runs with session options %s: %s", self._name, how, self.tuned)

    @property
    def _name(self) -> str:
        return "/".join(self._path.parts[-3:])
