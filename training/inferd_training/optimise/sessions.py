"""Models as the machine that will serve them runs them, and how long they take: always in turns, never one after all.

Clocks and neighbours change a machine's pace from second to second. Two models that take turns meet the same, and the
median of their ratios is what they differ by.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from inferd_training.errors import OptimiseError
from inferd_training.export.runtime import PROVIDER

BATCHES = (1, 8, 64)
"""Rows a run: a lone request, a small batch, and the server's largest by default."""

_TURN_SECONDS = 0.003
"""What a turn takes at least: enough for the clock, too little for the machine to change its pace."""

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of a run: the median of the rounds, and the quarters of them below and above which they lie."""

    median_us: float
    low_us: float
    high_us: float


class Session:
    """A model loaded as the server does: one thread, or as many as are said, and no spinning."""

    def __init__(self, model: bytes | str, threads: int = 1) -> None:
        """From the bytes of a model, or a path. Raises OptimiseError where ONNX Runtime does not take it."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Errors are raised; warnings are for whoever serves it.
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(model, options, providers=[PROVIDER])
        except Exception as error:  # the runtime's own types share no base: whatever it raises, it does not load
            raise OptimiseError(f"ONNX Runtime does not load it: {' '.join(str(error).split())}") from error
        self.outputs = tuple(value.name for value in self._session.get_outputs())

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """The outputs by name. Raises OptimiseError where ONNX Runtime fails."""
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feed)), strict=True))
        except Exception as error:  # as above
            raise OptimiseError(f"ONNX Runtime fails on it: {' '.join(str(error).split())}") from error

    def answers(self, inputs: Feed, batch: int = 256) -> dict[str, NDArray[Any]]:
        """The outputs for all rows, run in batches."""
        rows = len(next(iter(inputs.values())))
        parts = [
            self.run({name: array[start : start + batch] for name, array in inputs.items()})
            for start in range(0, rows, batch)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def seconds(self, feed: Feed, times: int) -> float:
        """The mean of so many runs, after one that is not timed: it finds the caches full of whoever ran before."""
        run, given = self._session.run, dict(feed)
        run(None, given)
        began = time.perf_counter()
        for _ in range(times):
            run(None, given)
        return (time.perf_counter() - began) / times


def feeds(inputs: Feed, batches: Sequence[int] = BATCHES) -> dict[int, Feed]:
    """The first rows of `inputs`, by batch size; rows are repeated where there are fewer."""
    return {
        batch: {name: np.resize(array, (batch, *array.shape[1:])) for name, array in inputs.items()}
        for batch in batches
    }


def gains(before: Session, after: Session, given: Mapping[int, Feed], rounds: int) -> dict[int, float]:
    """How many times as fast `after` is, by batch size: the medians of the rounds' ratios."""
    found = {}
    for batch, feed in given.items():
        # As long a turn for each, not as many runs: the faster one would be timed while it warms up.
        turns = [(session, _times(session, feed)) for session in (before, after)]
        ratios = []
        for _ in range(rounds):
            slow, quick = (session.seconds(feed, times) for session, times in turns)
            ratios.append(slow / quick)
        found[batch] = statistics.median(ratios)
    return found


def timings(sessions: Mapping[str, Session], given: Mapping[int, Feed], rounds: int) -> dict[str, dict[int, Timing]]:
    """The time of a run, by model and batch size, all models in turn in each round."""
    found: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in given} for name in sessions}
    for batch, feed in given.items():
        times = {name: _times(session, feed) for name, session in sessions.items()}
        for _ in range(rounds):
            for name, session in sessions.items():
                found[name][batch].append(session.seconds(feed, times[name]) * 1e6)
    return {
        name: {batch: Timing(*_quartiles(rows)) for batch, rows in by_batch.items()} for name, by_batch in found.items()
    }


def overall(by_batch: Mapping[int, float]) -> float:
    """One figure for the gains at all batch sizes: their geometric mean, in which each counts alike."""
    return math.exp(statistics.fmean(map(math.log, by_batch.values())))


def load(proto: onnx.ModelProto, threads: int = 1) -> Session:
    """A session of a model in memory. Raises OptimiseError as Session does."""
    return Session(proto.SerializeToString(), threads)


def _times(session: Session, feed: Feed) -> int:
    return max(1, math.ceil(_TURN_SECONDS / max(1e-7, session.seconds(feed, 2))))


def _quartiles(figures: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(figures, (25, 50, 75))
    return float(middle), float(low), float(high)
