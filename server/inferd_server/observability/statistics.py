"""What one model version has done: counted as it runs, read as a whole by whoever asks.

Each batch is counted in a tally that belongs to the instance that runs it, so that instances never wait for each other.
A tally is locked from before the batch's answers leave until they are counted: who has an answer and then asks for the
statistics finds it there.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key", int, str)
Totals = TypeVar("Totals", bound=tuple[int, ...])

_US, _MS, _S = 1_000, 1_000_000, 1_000_000_000

DURATION_BOUNDS_NS = (
    *(10 * _US, 25 * _US, 50 * _US, 100 * _US, 250 * _US, 500 * _US),
    *(1 * _MS, 2_500 * _US, 5 * _MS, 10 * _MS, 25 * _MS, 50 * _MS, 100 * _MS, 250 * _MS, 500 * _MS),
    *(1 * _S, 2_500 * _MS, 5 * _S, 10 * _S),
)
"""Upper bounds of the buckets of every histogram of durations, inclusive; a last bucket has no bound."""

_BOUNDS = np.array(DURATION_BOUNDS_NS, np.int64)
_BUCKETS = len(DURATION_BOUNDS_NS) + 1
_MOST_UNFOLDED = 2048
"""Requests and batches together, before they are folded, which takes less than a millisecond."""

Integers: TypeAlias = npt.NDArray[np.int64]


class Duration(NamedTuple):
    """How often, and nanoseconds in total."""

    times: int = 0
    ns: int = 0


class Stages(NamedTuple):
    """Nanoseconds that a request spent waiting, being gathered, being run and being answered: all of its time."""

    queue_ns: int
    input_ns: int
    infer_ns: int
    output_ns: int


Stamps: TypeAlias = tuple[int, int, int, int]
"""A batch on one clock, nanoseconds: when it was formed, its run began and ended, and its answers had left.

A plain tuple: a named one costs a lone request more than all the rest of counting it."""


def stages_of(arrived_ns: int, stamps: Stamps) -> Stages:
    """Where the time of a request went that came at `arrived_ns` and was in the batch."""
    picked_ns, began_ns, ended_ns, done_ns = stamps
    return Stages(picked_ns - arrived_ns, began_ns - picked_ns, ended_ns - began_ns, done_ns - ended_ns)


def stamps_of(arrived_ns: int, stages: Stages) -> Stamps:
    """The stamps of a batch in which a request that came at `arrived_ns` would have had these stages."""
    picked_ns = arrived_ns + stages.queue_ns
    began_ns = picked_ns + stages.input_ns
    ended_ns = began_ns + stages.infer_ns
    return picked_ns, began_ns, ended_ns, ended_ns + stages.output_ns


class BatchTotals(NamedTuple):
    """The batches of one size: how many were run, and nanoseconds in total."""

    runs: int
    input_ns: int
    infer_ns: int
    output_ns: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations: how many fell into each bucket of `DURATION_BOUNDS_NS` and beyond, and nanoseconds in total."""

    buckets: tuple[int, ...] = (0,) * _BUCKETS
    ns: int = 0

    @property
    def total(self) -> Duration:
        """Without the buckets."""
        return Duration(sum(self.buckets), self.ns)

    @property
    def cumulative(self) -> list[int]:
        """How many durations each bound is not below; the last number is of them all."""
        return list(accumulate(self.buckets))

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(tuple(map(sum, zip(self.buckets, other.buckets, strict=True))), self.ns + other.ns)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The statistics of a version at one moment. The durations are each request's: a batch's count for each in it."""

    last_inference_ms: int = 0
    """Since the epoch; 0 where nothing has run."""
    request: Histogram = field(default_factory=Histogram)
    """Successful requests, from arrival to answer: the sum of the four below."""
    queue: Histogram = field(default_factory=Histogram)
    compute_input: Histogram = field(default_factory=Histogram)
    compute_infer: Histogram = field(default_factory=Histogram)
    compute_output: Histogram = field(default_factory=Histogram)
    batches: Mapping[int, BatchTotals] = field(default_factory=dict)
    """By rows in the batch, in rising order."""
    failures: Mapping[str, Duration] = field(default_factory=dict)
    """By reason."""

    @property
    def rows(self) -> int:
        """Rows that were run."""
        return sum(rows * batch.runs for rows, batch in self.batches.items())

    @property
    def executions(self) -> int:
        """Batches that were run."""
        return sum(batch.runs for batch in self.batches.values())

    @property
    def failed(self) -> Duration:
        """Requests that failed, for whatever reason."""
        durations = self.failures.values()
        return Duration(sum(each.times for each in durations), sum(each.ns for each in durations))

    def __add__(self, other: Snapshot) -> Snapshot:
        return Snapshot(
            max(self.last_inference_ms, other.last_inference_ms),
            self.request + other.request,
            self.queue + other.queue,
            self.compute_input + other.compute_input,
            self.compute_infer + other.compute_infer,
            self.compute_output + other.compute_output,
            _merged(self.batches, other.batches, BatchTotals),
            _merged(self.failures, other.failures, Duration),
        )


class Tally:
    """Counts what one instance runs. Its user holds `lock`, from before the answers leave until they are counted.

    A batch costs the instance one append to a list; the sums and the buckets are worked out by numpy, for hundreds of
    batches at once or when somebody asks.
    """

    __slots__ = ("_batches", "_buckets", "_last_ns", "_ns", "_requests", "_unfolded", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._unfolded: list[tuple[int, Sequence[int], Stamps]] = []
        """The arguments of `count_batch`."""
        self._requests = 0
        """Those in the batches that are not folded yet."""
        self._last_ns: int | None = None
        self._batches: dict[int, BatchTotals] = {}
        self._ns = [0] * len(Stages._fields)
        self._buckets = np.zeros((len(Stages._fields) + 1, _BUCKETS), np.int64)
        """Of each stage, and of the whole."""

    def count_batch(self, rows: int, arrived_ns: Sequence[int], stamps: Stamps) -> None:
        """Counts a batch of `rows` rows, and with it the requests that it answered, by their arrivals on its clock."""
        self._unfolded.append((rows, arrived_ns, stamps))
        # One more for the batch itself, which may have none that it answered.
        self._requests += 1 + len(arrived_ns)
        if self._requests >= _MOST_UNFOLDED:
            self._fold()

    def count_request(self, stages: Stages) -> None:
        """Counts one request that succeeded: one without rows, or one split over batches that were counted alone."""
        for index, ns in enumerate((*stages, sum(stages))):
            self._buckets[index, bisect_left(DURATION_BOUNDS_NS, ns)] += 1
        for index, ns in enumerate(stages):
            self._ns[index] += ns

    def snapshot(self, epoch_ns: int) -> Snapshot:
        """What was counted so far. `epoch_ns` is when the clock of the stamps began, since the epoch."""
        with self.lock:
            self._fold()
            # Every stage ends where the next one begins, so a request's time is the sum of its stages.
            queue, compute_input, compute_infer, compute_output, request = (
                Histogram(tuple(buckets), ns)
                for buckets, ns in zip(self._buckets.tolist(), (*self._ns, sum(self._ns)), strict=True)
            )
            return Snapshot(
                0 if self._last_ns is None else (epoch_ns + self._last_ns) // _MS,
                request=request,
                queue=queue,
                compute_input=compute_input,
                compute_infer=compute_infer,
                compute_output=compute_output,
                batches=dict(sorted(self._batches.items())),
            )

    def _fold(self) -> None:
        if not self._unfolded:
            return
        sizes, arrivals, all_stamps = zip(*self._unfolded, strict=True)
        batches = len(sizes)
        rows = np.array(sizes, np.int64)
        stamps = np.fromiter(chain.from_iterable(all_stamps), np.int64, 4 * batches).reshape(batches, 4)
        requests = np.fromiter(map(len, arrivals), np.int64, batches)
        arrived = np.fromiter(chain.from_iterable(arrivals), np.int64, int(requests.sum()))
        queue = stamps[:, 0].repeat(requests) - arrived
        stages = np.diff(stamps).T
        self._buckets[0] += _counted(queue)
        for index, stage in enumerate(stages, start=1):
            self._buckets[index] += _counted(stage, requests)
        self._buckets[-1] += _counted(stamps[:, 3].repeat(requests) - arrived)
        for index, ns in enumerate((int(queue.sum()), *(stages @ requests).tolist())):
            self._ns[index] += ns
        runs = np.bincount(rows)
        # Sums of doubles, which are exact up to a hundred days in one fold.
        totals = [runs, *(np.bincount(rows, stage) for stage in stages)]
        new = {size: BatchTotals(*(int(each[size]) for each in totals)) for size in runs.nonzero()[0].tolist()}
        self._batches = _merged(self._batches, new, BatchTotals)
        self._last_ns = int(stamps[-1, 3])
        self._unfolded.clear()
        self._requests = 0


class FailureCounts:
    """Requests that failed, by reason. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures: dict[str, Duration] = {}

    def count(self, reason: str, ns: int) -> None:
        """Counts one that failed `ns` nanoseconds after it had come."""
        with self._lock:
            times, total = self._failures.get(reason, Duration())
            self._failures[reason] = Duration(times + 1, total + max(0, ns))

    def snapshot(self) -> Mapping[str, Duration]:
        """What was counted so far."""
        with self._lock:
            return dict(sorted(self._failures.items()))


class Statistics:
    """The statistics of one model version with so many instances."""

    def __init__(self, instances: int) -> None:
        self.tallies = tuple(Tally() for _ in range(instances))
        """One for each instance."""
        self.without_run = Tally()
        """For requests that need none."""
        self.failures = FailureCounts()
        self._epoch_ns = time.time_ns() - time.monotonic_ns()

    def snapshot(self) -> Snapshot:
        """What was counted so far; each tally and the failures as they were at one moment."""
        total = Snapshot(failures=self.failures.snapshot())
        for tally in (*self.tallies, self.without_run):
            total += tally.snapshot(self._epoch_ns)
        return total


def _counted(durations: Integers, weights: Integers | None = None) -> Integers:
    """How many durations, or what weight of them, fell into each bucket."""
    counted = np.bincount(_BOUNDS.searchsorted(durations), weights, minlength=_BUCKETS)
    return counted.astype(np.int64)


def _merged(one: Mapping[Key, Totals], other: Mapping[Key, Totals], make: Callable[..., Totals]) -> dict[Key, Totals]:
    """Both, in rising order of the keys; what has the same key is added up, number by number."""
    merged = dict(one)
    for key, totals in other.items():
        merged[key] = make(*map(sum, zip(merged[key], totals, strict=True))) if key in merged else totals
    return dict(sorted(merged.items()))
