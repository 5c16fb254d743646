"""Sequences: how many there may be and for how long, who goes first, and what becomes of them at the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from inferd_protocol.reasons import Reason
from inferd_server.errors import (
    Draining,
    InvalidRequest,
    QueueFull,
    TooManySequences,
)
from inferd_server.scheduling.dynamic_batcher import Closed
from support.sequences import IDLE_NS, SUM, Accumulator, Bench, Caller


def test_sequences_that_idle_are_dropped(bench: Bench) -> None:
    bench.ask(1, 5, start=True)
    bench.now_ns = IDLE_NS
    assert bench.ask(1, 1) == 6, "not for more than the time allowed"
    bench.now_ns = 2 * IDLE_NS
    bench.ask(2, 1, start=True)
    bench.now_ns += 1
    with pytest.raises(
        InvalidRequest, match="sequence 1 of model 'm' was dropped, since it was idle for more than 1000"
    ):
        bench.ask(1, 1)
    assert bench.ask(2, 1) == 2
    assert bench.ask(1, 3, start=True) == 3
    assert bench.ask(1, 3, end=True) == 6
    with pytest.raises(InvalidRequest, match="START flag"):
        bench.ask(1, 1)


def test_a_sequence_with_a_request_here_does_not_idle(bench: Bench) -> None:
    waiting = bench.bring(1, 5, start=True)
    bench.now_ns = 2 * IDLE_NS
    bench.bring(2, 1, start=True)
    bench.run()
    assert waiting.outcome == 5
    bench.now_ns = 3 * IDLE_NS
    assert bench.ask(1, 1) == 6


def test_live_sequences_are_bounded(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_sequences=2)
    bench.ask(1, 1, start=True)
    bench.ask(2, 2, start=True)
    with pytest.raises(TooManySequences, match="model 'm' has 2 live sequences") as caught:
        bench.ask(3, 3, start=True)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert bench.ask(2, 5, start=True) == 5, "a live one may begin again"
    started: list[Caller] = []
    ending = bench.bring(1, 1, end=True)
    ending.answered = lambda: started.append(bench.bring(3, 3, start=True))
    bench.run()
    assert [ending.outcome, started[0].outcome] == [2, 3], "who is told of an end can start another"
    bench.now_ns = IDLE_NS + 1
    for name in (4, 5, 4, 5):
        assert bench.ask(name, name, start=True) == name
    assert len(bench.front._dropped) == 2


def test_the_configuration_bounds_them_too(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(None, f"{SUM} oldest {{ max_candidate_sequences: 1 }}")
    bench.ask(1, 1, start=True)
    with pytest.raises(TooManySequences):
        bench.ask(2, 1, start=True)


def test_priorities_order_sequences_and_not_the_steps_of_one(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    order: list[str] = []

    def bring(name: str, sequence: int, priority: int, *, start: bool = False) -> None:
        caller = Caller()
        caller.answered = lambda: order.append(name)
        bench.bring(sequence, 1, start=start, priority=priority, caller=caller)

    for sequence in range(1, 6):
        bring(f"usual {sequence}", sequence, 0, start=True)
    bring("urgent step", 1, 1)
    bring("urgent", 9, 1, start=True)
    bench.run()
    assert order == ["urgent", "usual 1", "usual 2", "usual 3", "urgent step", "usual 4", "usual 5"]


def test_what_is_held_back_counts_for_the_limits(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_size=2)
    callers = [bench.bring(1, 1, start=True), bench.bring(1, 1)]
    for name, start in ((1, False), (2, True)):
        with pytest.raises(QueueFull, match="2 requests wait"):
            bench.bring(name, 100, start=start)
    bench.run()
    assert [caller.outcome for caller in callers] == [1, 2]
    with pytest.raises(InvalidRequest):
        bench.ask(2, 1)
    assert bench.ask(1, 1) == 3


def test_bytes_that_are_held_back_count_too_and_have_their_place(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_bytes=10)
    late: list[Caller] = []

    def arrive() -> None:
        late.append(bench.bring(1, 2, nbytes=8))
        late.append(bench.bring(2, 5, start=True, nbytes=2))
        with pytest.raises(QueueFull, match="10 of 10 bytes"):
            bench.bring(3, 5, start=True, nbytes=1)

    assert isinstance(bench.model, Accumulator)
    bench.model.meanwhile = arrive
    bench.bring(1, 1, start=True, nbytes=20)
    bench.run()
    assert [caller.outcome for caller in late] == [3, 5]


def test_closing_finishes_what_was_accepted(bench: Bench) -> None:
    callers = [bench.bring(1, value, start=value == 1) for value in (1, 2, 3)]
    bench.batcher.start()
    assert bench.batcher.close(10.0)
    assert [caller.outcome for caller in callers] == [1, 3, 6]
    with pytest.raises(Closed):
        bench.bring(1, 1)
    with pytest.raises(Closed):
        bench.bring(2, 1, start=True)


def test_closing_gives_up_on_what_does_not_begin_in_time(bench: Bench) -> None:
    late: list[Caller] = []

    def close() -> None:
        late.extend(bench.bring(1, 1) for _ in range(3))
        late.append(bench.bring(2, 1))
        assert not bench.batcher.close(0)

    bench.ask(2, 1, start=True)
    assert isinstance(bench.model, Accumulator)
    bench.model.meanwhile = close
    assert bench.ask(1, 5, start=True) == 5
    assert [type(caller.outcome) for caller in late] == [Draining] * 4
    assert bench.runs == [1, 1]


def test_a_long_line_is_given_up_without_recursion(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_size=5000)
    callers = [bench.bring(1, 1, start=place == 0) for place in range(3000)]
    callers[0].gone = True
    bench.run()
    assert {type(caller.outcome) for caller in callers[1:]} == {InvalidRequest}


def test_what_ends_without_a_run_leaves_its_place(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_size=3)
    callers = [bench.bring(1, 1, start=place == 0) for place in range(3)]
    callers[0].gone = True
    bench.run()
    callers = [bench.bring(2, 1, start=place == 0) for place in range(3)]
    bench.run()
    assert [caller.outcome for caller in callers] == [1, 2, 3]
