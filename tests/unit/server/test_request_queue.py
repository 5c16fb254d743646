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


def work(
    rows: int,
    key: str = "a",
    *,
    deadline_ns: int | None = None,
    expires_ns: int | None = None,
    priority: int = 0,
    arrived_ns: int = 0,
) -> Work:
    array = np.zeros((rows, 2), np.float32)
    layout = Layout.of([array.dtype], [(ord(key),)], batched=True)
    return Work([array], rows, layout, Caller(deadline_ns), finish, arrived_ns, expires_ns, array.nbytes, priority)  # type: ignore[arg-type]


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


def picked(waiting: RequestQueue, max_rows: int = 8) -> list[Work]:
    return [piece[0] for piece in waiting.pick(0, max_rows).slices]


def test_smaller_priorities_run_first_and_none_comes_last() -> None:
    for limit in (1, 3, 8):
        none, second, first, late_first = (work(1, priority=number) for number in (0, 2, 1, 1))
        waiting = queue(none, second, first, late_first)
        order = []
        while len(waiting):
            order += picked(waiting, limit)
        assert order == [first, late_first, second, none]


def test_the_layout_of_the_highest_priority_runs_first_and_its_batch_is_filled_up() -> None:
    oldest, same, other, urgent = work(1, "a"), work(1, "b"), work(1, "b", priority=7), work(1, "b", priority=3)
    waiting = queue(oldest, same, other, urgent)
    assert picked(waiting) == [urgent, other, same]
    assert picked(waiting) == [oldest]


def test_a_request_that_does_not_fit_is_not_overtaken_by_lower_ones() -> None:
    small, large, urgent = work(1), work(6, priority=2), work(5, priority=1)
    waiting = queue(small, large, urgent)
    assert [picked(waiting) for _ in range(2)] == [[urgent], [large, small]]


def test_an_urgent_request_overtakes_the_rest_of_one_that_is_split() -> None:
    large, urgent = work(10), work(1, priority=1)
    waiting = queue(large)
    waiting.pick(0, 4)
    waiting.push(urgent)
    pick = waiting.pick(0, 4)
    assert [(piece[0], piece[1], piece[2]) for piece in pick.slices] == [(urgent, 0, 1), (large, 4, 7)]


def test_dead_requests_do_not_lend_their_priority_to_others_of_their_layout() -> None:
    dead, usual, urgent = work(1, "a", priority=1, deadline_ns=1), work(1, "a"), work(1, "b", priority=2)
    waiting = queue(dead, usual, urgent)
    pick = waiting.pick(1, 8)
    assert pick.dead == [(dead, Death.DEADLINE)]
    assert [piece[0] for piece in pick.slices] == [urgent]
    assert picked(waiting) == [usual]


def test_priorities_do_not_make_anybody_wait_longer_for_others_than_asked() -> None:
    waiting = queue(work(1, "a", arrived_ns=10), work(1, "b", arrived_ns=40, priority=1))
    assert waiting.due_ns(8, delay_ns=50) == 60
    waiting.push(work(5, "b", arrived_ns=45))
    assert waiting.due_ns(8, delay_ns=50) == 60
    waiting.push(work(2, "b", arrived_ns=45, priority=3))
    assert waiting.due_ns(8, delay_ns=50) == 0, "the batch that runs next is full"
    assert queue(work(1, arrived_ns=10, priority=1), work(1, arrived_ns=5, priority=2)).due_ns(8, delay_ns=50) == 55


def test_all_are_taken_whatever_their_priority() -> None:
    works = [work(1), work(1, priority=1), work(1, "b", priority=2)]
    waiting = queue(*works)
    assert {id(each) for each in waiting.take_all()} == {id(each) for each in works}
    assert (len(waiting), picked(waiting)) == (0, [])


def test_bytes_are_given_back() -> None:
    waiting = queue(work(10), max_bytes=100)
    waiting.pick(0, 64)
    waiting.push(work(10))
    assert [each.rows for each in waiting.take_all()] == [10]
    waiting.push(work(10))


@given(
    st.lists(st.tuples(st.integers(1, 20), st.sampled_from("ab"), st.integers(0, 3)), max_size=30),
    st.integers(1, 8),
)
def test_every_row_runs_once_in_order_and_no_batch_is_too_large(
    requests: list[tuple[int, str, int]], limit: int
) -> None:
    works = [work(rows, key, priority=priority) for rows, key, priority in requests]
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


def rank(each: Work) -> tuple[int, int]:
    return each.priority or 2**32, each.sequence


Step = tuple[int, str, int, bool] | None


@given(
    st.lists(st.none() | st.tuples(st.integers(1, 5), st.sampled_from("abc"), st.integers(0, 3), st.booleans())),
    st.integers(1, 8),
)
def test_pushes_and_picks_in_any_order_run_the_first_by_priority_and_arrival(steps: list[Step], limit: int) -> None:
    """Against a list that is sorted anew for each pick."""
    waiting = queue(max_size=1000)
    model: list[Work] = []
    # Picks enough for every row to be run.
    for step in [*steps, *[None] * 5 * len(steps)]:
        if step is not None:
            rows, key, priority, dead = step
            each = work(rows, key, priority=priority, deadline_ns=-1 if dead else None)
            waiting.push(each)
            model.append(each)
            continue
        pick = waiting.pick(0, limit)
        alive = sorted((each for each in model if each.reply.deadline_ns is None), key=rank)
        expected, room = [], limit
        for each in alive:
            left = each.rows - each.next_row + sum(piece[2] - piece[1] for piece in pick.slices if piece[0] is each)
            if each.layout.key != alive[0].layout.key:
                continue
            if room == 0 or (left > room and each.rows <= limit):
                break
            expected.append((each, min(left, room)))
            room -= min(left, room)
        assert [(piece[0], piece[2] - piece[1]) for piece in pick.slices] == expected
        gone = {id(each) for each, _ in pick.dead} | {
            id(piece[0]) for piece in pick.slices if piece[0].next_row == piece[0].rows
        }
        model = [each for each in model if id(each) not in gone]
        assert len(waiting) == len(model)
    assert len(waiting) == 0
