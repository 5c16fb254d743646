"""Measures two settings of one model against each other, run by run in turns, so that a busy moment meets both."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from inferd_protocol.datatypes import BF16, Datatype
from inferd_protocol.tensors import Tensor, bf16_values

from inferd_server.errors import ServerError
from inferd_server.runtime.backend import SessionSettings, Signature
from inferd_server.runtime.choosing import Cost

_LOG = logging.getLogger(__name__)

_LEAST_ROUNDS = 5
_MOST_ROUNDS = 200
_DUEL_NS = 400_000_000
"""What the sizes of a duel share: a median of runs of milliseconds is steady by then."""

_TOLERANCE = {"FP16": 1e-2, "BF16": 2e-2, "FP32": 1e-4, "FP64": 1e-9}
"""Relative and absolute. Another order of adding up is no other answer; a few roundings of the datatype are allowed."""


class Runnable(Protocol):
    """A session of a candidate."""

    signature: Signature

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """As RuntimeModel.run."""

    def close(self) -> None:
        """Frees it."""


class Duels:
    """The duels over one model. The champion's session is kept from one duel to the next.

    `clock_ns` and `cpu_ns` are time.perf_counter_ns and time.process_time_ns but for tests.
    """

    def __init__(
        self,
        load: Callable[[SessionSettings], Runnable],
        samples: Sequence[Sequence[Tensor]],
        seconds: float,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        cpu_ns: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self.fought = 0
        """Duels that have an outcome."""
        self.out_of_time = False
        """Whether any had none because the time was over."""
        self._load = load
        self._samples = samples
        self._clock_ns = clock_ns
        self._cpu_ns = cpu_ns
        self._ends_ns = clock_ns() + int(seconds * 1e9)
        self._sessions: dict[str, Runnable] = {}

    def __call__(self, champion: SessionSettings, challenger: SessionSettings) -> Sequence[tuple[Cost, Cost]] | None:
        """The costs of both at each of the samples, as `choosing.Duel` says. A failure of the champion is raised."""
        if self._clock_ns() >= self._ends_ns:
            self.out_of_time = True
            return None
        for key in [key for key in self._sessions if key not in (repr(champion), repr(challenger))]:
            self._sessions.pop(key).close()
        first = self._session(champion)
        answers = [first.run(inputs) for inputs in self._samples]
        try:
            second = self._session(challenger)
            pairs = zip(answers, self._samples, strict=True)
            if not all(_same(first.signature, answer, second.run(inputs)) for answer, inputs in pairs):
                _LOG.debug("not taken, since its answers differ: %s", challenger)
                return None
        except ServerError as error:
            _LOG.debug("not taken, since it fails: %s: %s", challenger, error)
            return None
        costs = []
        for left, inputs in zip(range(len(self._samples), 0, -1), self._samples, strict=True):
            pair = self._measure(first, second, inputs, _DUEL_NS // len(self._samples), left)
            if pair is None:
                self.out_of_time = True
                return None
            costs.append(pair)
        self.fought += 1
        return costs

    def close(self) -> None:
        """Frees the sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def _session(self, settings: SessionSettings) -> Runnable:
        key = repr(settings)
        if key not in self._sessions:
            self._sessions[key] = self._load(settings)
        return self._sessions[key]

    def _measure(
        self, first: Runnable, second: Runnable, inputs: Sequence[Tensor], for_ns: int, left: int
    ) -> tuple[Cost, Cost] | None:
        """None where the time ended before enough rounds."""
        walls: tuple[list[int], list[int]] = ([], [])
        cpus: tuple[list[int], list[int]] = ([], [])
        now = self._clock_ns()
        ends = min(now + for_ns, now + max(0, self._ends_ns - now) // left)
        # By turns, and each begins every other round: the second of two finds the caches as the first left them.
        for number in range(_MOST_ROUNDS):
            for place in (0, 1) if number % 2 else (1, 0):
                session = (first, second)[place]
                cpu, wall = self._cpu_ns(), self._clock_ns()
                session.run(inputs)
                walls[place].append(self._clock_ns() - wall)
                cpus[place].append(self._cpu_ns() - cpu)
            if self._clock_ns() >= ends:
                break
        if len(walls[0]) < _LEAST_ROUNDS:
            return None
        one, other = (Cost(statistics.median(walls[at]), statistics.median(cpus[at])) for at in (0, 1))
        return one, other


def _same(signature: Signature, first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    pairs = zip(signature.outputs, first, second, strict=True)
    return all(same_answer(spec.datatype, one, other) for spec, one, other in pairs)


def same_answer(datatype: Datatype, one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are the same: exactly, or within a few roundings where they are numbers with a fraction."""
    if one.shape != other.shape:
        return False
    if datatype is BF16:
        one, other = bf16_values(one), bf16_values(other)
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    tolerance = _TOLERANCE[datatype.name]
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True))
