"""What a version's statistics make of stamps, and what the batcher tells them: no timing, a clock that stands still."""

from __future__ import annotations

import bisect
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from inferd_server.errors import (
    ConfigurationError,
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    MessageTooLarge,
    ModelNotReady,
    QueueFull,
    QueueTimeout,
    RuntimeFailure,
)
from inferd_server.observability.failures import reason_of
from inferd_server.observability.loads import LoadCounts, Loads
from inferd_server.observability.statistics import (
    DURATION_BOUNDS_NS,
    BatchTotals,
    Duration,
    Histogram,
    Snapshot,
    Stages,
    Stamps,
    Statistics,
    stages_of,
)


def count(statistics: Statistics, rows: int, arrived: Sequence[int], stamps: Stamps, instance: int = 0) -> None:
    tally = statistics.tallies[instance]
    with tally.lock:
        tally.count_batch(rows, arrived, stamps)


def histogram(durations: Sequence[int]) -> Histogram:
    buckets = [0] * (len(DURATION_BOUNDS_NS) + 1)
    for duration in durations:
        buckets[bisect.bisect_left(DURATION_BOUNDS_NS, duration)] += 1
    return Histogram(tuple(buckets), sum(durations))


def test_nothing_has_run() -> None:
    snapshot = Statistics(2).snapshot()
    assert snapshot == Snapshot()
    assert (snapshot.rows, snapshot.executions, snapshot.failed) == (0, 0, Duration())


def test_a_batch_counts_once_as_a_batch_and_for_each_of_its_requests() -> None:
    statistics = Statistics(1)
    count(statistics, 5, [1_000, 2_000, 3_000], (10_000, 12_000, 20_000, 21_000))
    snapshot = statistics.snapshot()
    assert snapshot.batches == {5: BatchTotals(1, 2_000, 8_000, 1_000)}
    assert (snapshot.rows, snapshot.executions) == (5, 1)
    assert snapshot.queue.total == Duration(3, 9_000 + 8_000 + 7_000)
    assert snapshot.compute_input.total == Duration(3, 3 * 2_000)
    assert snapshot.compute_infer.total == Duration(3, 3 * 8_000)
    assert snapshot.compute_output.total == Duration(3, 3 * 1_000)
    assert snapshot.request.total == Duration(3, 20_000 + 19_000 + 18_000)


def test_a_duration_that_is_a_bound_is_within_it() -> None:
    statistics = Statistics(1)
    bound = DURATION_BOUNDS_NS[3]
    count(statistics, 1, [0], (bound, bound, bound, bound))
    count(statistics, 1, [0], (bound + 1, bound + 1, bound + 1, bound + 1))
    queue = statistics.snapshot().queue
    assert (queue.buckets[3], queue.buckets[4]) == (1, 1)
    assert queue.cumulative[-1] == 2


def test_any_number_of_batches_is_what_counting_them_one_by_one_gives() -> None:
    numbers = random.Random(5)
    statistics = Statistics(2)
    requests: list[Stages] = []
    batches: dict[int, list[int]] = {}
    for _ in range(3_000):
        now = numbers.randrange(10**12)
        began, ended, done = sorted(now + int(10 ** numbers.uniform(0, 11)) for _ in range(3))
        stamps = (now, began, ended, done)
        arrived = [now - int(10 ** numbers.uniform(0, 11)) for _ in range(numbers.randrange(5))]
        rows = numbers.randrange(1, 9)
        count(statistics, rows, arrived, stamps, numbers.randrange(2))
        requests += [stages_of(each, stamps) for each in arrived]
        totals = batches.setdefault(rows, [0, 0, 0, 0])
        for index, value in enumerate((1, *stages_of(now, stamps)[1:])):
            totals[index] += value
    snapshot = statistics.snapshot()
    assert snapshot.batches == {rows: BatchTotals(*totals) for rows, totals in sorted(batches.items())}
    stages = zip(*requests, strict=True)
    expected = [histogram(stage) for stage in stages]
    assert [snapshot.queue, snapshot.compute_input, snapshot.compute_infer, snapshot.compute_output] == expected
    assert snapshot.request == histogram([sum(each) for each in requests])


def test_a_snapshot_in_the_middle_is_consistent_and_loses_nothing() -> None:
    statistics = Statistics(4)
    stop = threading.Event()

    def run(instance: int) -> None:
        for _ in range(5_000):
            count(statistics, 2, [0, 0], (10, 20, 30, 40), instance)

    def look() -> None:
        while not stop.is_set():
            snapshot = statistics.snapshot()
            requests = snapshot.request.total.times
            assert requests == snapshot.queue.total.times == snapshot.compute_infer.total.times == snapshot.rows
            assert snapshot.request.ns == 40 * requests
            assert snapshot.batches.get(2, BatchTotals(0, 0, 0, 0)).infer_ns == 10 * snapshot.executions

    with ThreadPoolExecutor(5) as pool:
        looking = pool.submit(look)
        for running in [pool.submit(run, instance) for instance in range(4)]:
            running.result()
        stop.set()
        looking.result()
    assert statistics.snapshot().executions == 20_000


def test_snapshots_add_up() -> None:
    one, other = Statistics(1), Statistics(1)
    count(one, 1, [0], (1, 2, 3, 4))
    count(other, 1, [0], (1, 2, 3, 4))
    count(other, 2, [0], (1, 2, 3, 4))
    one.failures.count("invalid", 5)
    other.failures.count("invalid", 7)
    other.failures.count("cancelled", 1)
    total = one.snapshot() + other.snapshot()
    assert total.batches == {1: BatchTotals(2, 2, 2, 2), 2: BatchTotals(1, 1, 1, 1)}
    assert total.failures == {"cancelled": Duration(1, 1), "invalid": Duration(2, 12)}
    assert total.failed == Duration(3, 13)
    assert total.request.total == Duration(3, 12)
    assert total + Snapshot() == total


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidRequest("x"), "invalid"),
        (MessageTooLarge("request", 2, 1), "too_large"),
        (ModelNotReady("m", 1, "why"), "loading"),
        (QueueFull("1"), "queue_full"),
        (QueueTimeout(), "queue_timeout"),
        (Draining(), "draining"),
        (DeadlineExceeded(), "deadline"),
        (RuntimeFailure("x"), "runtime"),
        (ZeroDivisionError("x"), "defect"),
    ],
)
def test_reasons(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_loads_are_counted_whatever_their_outcome() -> None:
    counts = LoadCounts()

    def load(name: str, version: int, fails: bool) -> str:
        if fails:
            raise ConfigurationError("no")
        return f"{name}/{version}"

    counted = counts.counted(load)
    assert counted("m", 1, False) == "m/1"
    with pytest.raises(ConfigurationError):
        counted("m", 1, True)
    assert [(key, each[:2]) for key, each in counts.snapshot().items()] == [(("m", 1), (1, 1))]
    assert isinstance(counts.snapshot()["m", 1], Loads)
