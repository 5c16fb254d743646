"""Requests that wait for one model, and which of them run next. Plain state: its owner holds the lock."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain

from inferd_server.errors import QueueFull
from inferd_server.scheduling.work import Assembly, Slice, Work


class Death(Enum):
    """Why a request that waited is not run."""

    CANCELLED = "its caller has gone"
    DEADLINE = "its caller's deadline passed"
    TIMEOUT = "it waited longer than its own timeout"
    FAILED = "an earlier part of it failed, and its caller knows"


@dataclass(slots=True)
class Pick:
    """What runs next, and what was found dead on the way, at `now_ns`."""

    now_ns: int = 0
    slices: list[Slice] = field(default_factory=list)
    rows: int = 0
    dead: list[tuple[Work, Death]] = field(default_factory=list)


class RequestQueue:
    """Requests of equal layout run together, those with a priority first: 1 before 2, and 0, none, after all others.

    Within a priority it is first come, first served. Priorities are strict: while requests of a smaller number keep
    coming, those of a larger one wait. They do not change what is taken: a full queue refuses every request alike.

    `max_size` counts requests, `max_bytes` the messages they came in. A request that finds the queue empty is always
    taken, so that one request larger than `max_bytes` can still be served.
    """

    def __init__(self, max_size: int, max_bytes: int) -> None:
        self._max_size = max_size
        self._max_bytes = max_bytes
        self._by_key: dict[str, deque[Work]] = {}
        """Those without a priority, by layout."""
        self._urgent: dict[str, _Ranked] = {}
        """Those with one. Empty where nobody sets any, and then asked for nothing else."""
        self._arrivals = 0
        self._bytes = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, work: Work) -> None:
        """Takes a request. Raises QueueFull."""
        if self._size >= self._max_size:
            raise QueueFull(f"{self._max_size} requests wait")
        nbytes = work.nbytes
        if self._size and self._bytes + nbytes > self._max_bytes:
            raise QueueFull(f"{self._bytes} of {self._max_bytes} bytes of requests wait")
        self._arrivals += 1
        work.sequence = self._arrivals
        self._bytes += nbytes
        self._size += 1
        key = work.layout.key
        if work.priority:
            self._urgent.setdefault(key, _Ranked()).append(work)
            return
        waiting = self._by_key.get(key)
        if waiting is None:
            self._by_key[key] = deque((work,))
        else:
            waiting.append(work)

    def pick(self, now_ns: int, max_rows: int) -> Pick:
        """Takes out up to `max_rows` rows of the layout whose request is first: by priority, then by arrival.

        A batch of requests with a priority is filled up with those of lower ones. A request that fits into a batch is
        never split. One that is larger than `max_rows` gives a part of itself and stays at its place for the next pick.
        """
        pick = Pick(now_ns)
        while self._size and not pick.rows:
            key = self._first_key()
            if self._urgent:
                room = self._take(pick, self._urgent, key, now_ns, max_rows)
                if not room or not pick.rows:
                    continue
            self._take(pick, self._by_key, key, now_ns, max_rows)
        return pick

    def due_ns(self, max_rows: int, delay_ns: int) -> int:
        """When the next batch is to run, on the clock of `arrived_ns`, where requests wait up to `delay_ns` for others.

        0, which is in the past, where a batch is full. The queue must not be empty.
        """
        key = self._first_key()
        rows = 0
        urgent: Iterable[Work] = self._urgent.get(key, ())
        usual: Iterable[Work] = self._by_key.get(key, ())
        for work in chain(urgent, usual):
            rows += work.rows - work.next_row
            if rows >= max_rows or work.assembly is not None:
                return 0
        if not self._urgent:
            return self._by_key[key][0].arrived_ns + delay_ns
        # Whatever has waited long enough makes the batch due, though others may run first.
        oldest = [waiting[0] for waiting in self._by_key.values()]
        return min(work.arrived_ns for work in chain(oldest, *self._urgent.values())) + delay_ns

    def take_all(self) -> list[Work]:
        """Empties the queue."""
        works = list(chain(*self._urgent.values(), *self._by_key.values()))
        self._by_key.clear()
        self._urgent.clear()
        self._bytes = self._size = 0
        return works

    def _first_key(self) -> str:
        """The layout that runs next."""
        if self._urgent:
            return min(self._urgent, key=lambda key: self._urgent[key].rank)
        if len(self._by_key) == 1:
            return next(iter(self._by_key))
        return min(self._by_key, key=lambda key: self._by_key[key][0].sequence)

    def _take(
        self,
        pick: Pick,
        by_key: dict[str, deque[Work]] | dict[str, _Ranked],
        key: str,
        now_ns: int,
        max_rows: int,
    ) -> bool:
        """Moves requests of one layout to the pick. Whether there is room for others after them."""
        waiting = by_key.get(key)
        if waiting is None:
            return True
        while waiting and pick.rows < max_rows:
            work = waiting[0]
            if (dead := _death(work, now_ns)) is not None:
                self._drop_first(waiting)
                pick.dead.append((work, dead))
                if pick.rows:
                    continue
                # It was first, and with it gone a request of another layout may be.
                break
            left = work.rows - work.next_row
            room = max_rows - pick.rows
            if left > room and work.rows <= max_rows:
                return False
            taken = min(left, room)
            if taken < left and work.assembly is None:
                work.assembly = Assembly(work.rows)
            pick.slices.append((work, work.next_row, work.next_row + taken))
            pick.rows += taken
            work.next_row += taken
            if work.next_row == work.rows:
                self._drop_first(waiting)
        if not waiting:
            del by_key[key]
        return pick.rows < max_rows

    def _drop_first(self, waiting: deque[Work] | _Ranked) -> None:
        work = waiting.popleft()
        self._size -= 1
        self._bytes -= work.nbytes


class _Ranked:
    """Requests by priority, then by arrival, with as much of a deque as the queue uses."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Work]] = []

    @property
    def rank(self) -> tuple[int, int]:
        """The first one's priority and arrival."""
        priority, sequence, _ = self._heap[0]
        return priority, sequence

    def append(self, work: Work) -> None:
        heapq.heappush(self._heap, (work.priority, work.sequence, work))

    def popleft(self) -> Work:
        return heapq.heappop(self._heap)[2]

    def __getitem__(self, index: int) -> Work:
        """Of use for the first one alone: the others are in no order."""
        return self._heap[index][2]

    def __iter__(self) -> Iterator[Work]:
        return (work for _, _, work in self._heap)

    def __len__(self) -> int:
        return len(self._heap)


def _death(work: Work, now_ns: int) -> Death | None:
    """Why a request is not worth running, None if it is."""
    if work.reply.cancelled():
        return Death.CANCELLED
    if work.assembly is not None:
        # It has begun to run, and so has left the queue as far as its queue timeout goes.
        return Death.FAILED if work.assembly.failed else None
    if work.reply.deadline_ns is not None and work.reply.deadline_ns <= now_ns:
        return Death.DEADLINE
    if work.expires_ns is not None and work.expires_ns <= now_ns:
        return Death.TIMEOUT
    return None
