from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_protocol.tensors import Tensor
from inferd_server.errors import QueueFull
from inferd_server.request import Reply
from inferd_server.scheduling.request_queue import Death, RequestQueue
from inferd_server.scheduling.work import Layout, Work


def finish(reply: Reply, outputs: Sequence[Tensor]) -> None:
    raise AssertionError("nothing runs here")


class Caller:
    """A reply that remembers."""

    def __init__(self, deadline_ns: int | None = None) -> None:
        self.deadline_ns = deadline_ns
        self.gone = False

    def cancelled(self) -> bool:
        return self.gone


def work(rows: int, key: str = "a", *, deadline_ns: int | None = None, expires_ns: int | None = None) -> Work:
    array = np.zeros((rows, 2), np.float32)
    layout = Layout.of([array.dtype], [(ord(key),)], batched=True)
    return Work([array], rows, layout, Caller(deadline_ns), finish, 0, expires_ns, array.nbytes)  # type: ignore[arg-type]


def queue(*works: Work, max_size: int = 100, max_bytes: int = 10**6) -> RequestQueue:
    made = RequestQueue(max_size, max_bytes)
    for each in works:
        made.push(each)
    return made


def test_rows_are_picked_in_order_up_to_the_limit() -> None:
    works = [work(3), work(4), work(2)]
    waiting = queue(*works)
    pick = waiting.pick(0, 8)
    assert [(piece[0], piece[1], piece[2]) for piece in pick.slices] == [(works[0], 0, 3), (works[1], 0, 4)]
    assert pick.rows == 7
    assert [piece[0] for piece in waiting.pick(0, 8).slices] == [works[2]]
    assert len(waiting) == 0


def test_only_requests_of_one_key_run_together_and_the_oldest_key_goes_first() -> None:
    works = [work(1, "a"), work(1, "b"), work(1, "a")]
    waiting = queue(*works)
    assert [piece[0] for piece in waiting.pick(0, 8).slices] == [works[0], works[2]]
    assert [piece[0] for piece in waiting.pick(0, 8).slices] == [works[1]]


def test_a_request_larger_than_a_batch_is_split_and_the_rest_shares_its_last_batch() -> None:
    large, small = work(10), work(1)
    waiting = queue(large, small)
    spans = []
    while len(waiting):
        spans.append([(piece[0], piece[1], piece[2]) for piece in waiting.pick(0, 4).slices])
    assert spans == [[(large, 0, 4)], [(large, 4, 8)], [(large, 8, 10), (small, 0, 1)]]


def test_dead_requests_are_dropped_and_named() -> None:
    cancelled, expired, waited, alive = work(1), work(1, deadline_ns=5), work(1, expires_ns=5), work(1, deadline_ns=6)
    cancelled.reply.gone = True  # type: ignore[attr-defined]
    pick = queue(cancelled, expired, waited, alive).pick(5, 8)
    assert pick.dead == [(cancelled, Death.CANCELLED), (expired, Death.DEADLINE), (waited, Death.TIMEOUT)]
    assert [piece[0] for piece in pick.slices] == [alive]


def test_a_queue_of_only_dead_requests_picks_nothing_and_ends_empty() -> None:
    waiting = queue(work(1, "a", deadline_ns=1), work(1, "b", deadline_ns=1))
    pick = waiting.pick(2, 8)
    assert (pick.rows, len(pick.dead), len(waiting)) == (0, 2, 0)


def test_the_rest_of_a_split_request_that_failed_is_not_run() -> None:
    large = work(10)
    waiting = queue(large)
    waiting.pick(0, 4)
    assert large.assembly is not None
    large.assembly.failed = True
    assert waiting.pick(0, 4).dead == [(large, Death.FAILED)]
    assert len(waiting) == 0


def test_a_full_queue_refuses_by_requests_and_by_bytes() -> None:
    with pytest.raises(QueueFull, match="2 requests wait"):
        queue(work(1), work(1), work(1), max_size=2)
    with pytest.raises(QueueFull, match="80 of 100 bytes"):
        queue(work(10), work(10), max_bytes=100)


def test_a_request_larger_than_the_byte_limit_is_taken_alone() -> None:
    assert len(queue(work(100), max_bytes=10)) == 1


def test_a_batch_is_due_when_it_is_full_or_its_first_request_has_waited_long_enough() -> None:
    assert queue(work(3)).due_ns(8, delay_ns=50) == 50
    assert queue(work(3), work(4)).due_ns(8, delay_ns=50) == 50
    assert queue(work(3), work(5)).due_ns(8, delay_ns=50) == 0
    assert queue(work(3, "a"), work(8, "b")).due_ns(8, delay_ns=50) == 50, "the oldest goes first"
    large = queue(work(10))
    large.pick(0, 8)
    assert large.due_ns(8, delay_ns=50) == 0, "what has begun to run waits for nothing"


def test_bytes_are_given_back() -> None:
    waiting = queue(work(10), max_bytes=100)
    waiting.pick(0, 64)
    waiting.push(work(10))
    assert [each.rows for each in waiting.take_all()] == [10]
    waiting.push(work(10))


@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from("ab")), max_size=30),
    st.integers(1, 8),
)
def test_every_row_runs_once_in_order_and_no_batch_is_too_large(requests: list[tuple[int, str]], limit: int) -> None:
    works = [work(rows, key) for rows, key in requests]
    waiting = queue(*works)
    rows: dict[int, list[int]] = {id(each): [] for each in works}
    while len(waiting):
        pick = waiting.pick(0, limit)
        assert 0 < pick.rows <= limit
        assert pick.rows == sum(piece[2] - piece[1] for piece in pick.slices)
        assert len({piece[0].layout.key for piece in pick.slices}) == 1
        for piece in pick.slices:
            whole = piece[2] - piece[1] == piece[0].rows
            assert whole or piece[0].rows > limit, "a request that fits is never split"
            rows[id(piece[0])] += range(piece[1], piece[2])
    assert all(rows[id(each)] == list(range(each.rows)) for each in works)


def test_what_is_held_back_waits_and_does_not_run() -> None:
    waiting = queue(work(1), max_size=2)
    waiting.hold(5)
    with pytest.raises(QueueFull, match="2 requests wait"):
        waiting.push(work(1))
    with pytest.raises(QueueFull, match="2 requests wait"):
        waiting.hold(0)
    assert len(waiting) == 1
    assert len(waiting.take_all()) == 1
    assert len(waiting) == 0
    waiting.let_go(5)
    waiting.push(work(1))
    waiting.push(work(1))
    assert len(waiting) == 2
