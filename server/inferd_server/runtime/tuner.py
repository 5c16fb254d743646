"""Tunes one model: what was found for it before, or a short measurement now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
from inferd_protocol.tensors import Tensor

from inferd_server.runtime import choosing, fingerprint
from inferd_server.runtime.backend import SessionSettings
from inferd_server.runtime.duels import Duels, Runnable
from inferd_server.runtime.options import TuneOptions
from inferd_server.runtime.resources import available_cpus
from inferd_server.runtime.tuning_cache import Key, TuningCache

_LOG = logging.getLogger(__name__)


class Tuner:
    """Chooses the session options of models on the CPU."""

    def __init__(self, options: TuneOptions, cache: TuningCache) -> None:
        self.options = options
        self._cache = cache
        self._cpu = fingerprint.cpu_model()

    def key(self, path: Path, settings: SessionSettings) -> Key:
        """What a result holds for. Raises OSError where the file cannot be read."""
        return {
            "model": fingerprint.sha256(path),
            "cpu": self._cpu,
            "cpus": available_cpus(),
            "onnxruntime": ort.__version__,
            "instances": self.options.instances,
            "workers": self.options.workers,
            "rows": settings.most_rows,
            "settings": f"{settings} {sorted(self._fixed(settings))}",
        }

    def found(self, key: Key, settings: SessionSettings) -> SessionSettings | None:
        """What an earlier measurement chose."""
        return self._cache.find(key, settings)

    def measure(
        self,
        key: Key,
        settings: SessionSettings,
        samples: Sequence[Sequence[Tensor]],
        load: Callable[[SessionSettings], Runnable],
    ) -> SessionSettings:
        """Measures now, alone on this cache, for at most the seconds that are allowed, and keeps what it chose.

        Raises ServerError where the model does not run on the samples.
        """
        with self._cache.alone():
            found = self.found(key, settings)
            if found is not None:
                # Another worker has measured while this one waited.
                return found
            began = time.monotonic()
            duels = Duels(load, samples, self.options.seconds)
            try:
                free = replace(settings, explicit=self._fixed(settings))
                chosen = replace(choosing.choose(free, settings.intra_op_threads, duels), explicit=settings.explicit)
            finally:
                duels.close()
            _LOG.debug("%d duels in %.2f s", duels.fought, time.monotonic() - began)
            if duels.out_of_time:
                _LOG.warning(
                    "tuning was not done with all options: --tune-secs %g is short for this model", self.options.seconds
                )
            if duels.fought or not duels.out_of_time:
                self._cache.keep(key, chosen)
            return chosen

    def _fixed(self, settings: SessionSettings) -> frozenset[str]:
        return settings.explicit | ({"intra_op_threads"} if self.options.threads_are_set else frozenset())
