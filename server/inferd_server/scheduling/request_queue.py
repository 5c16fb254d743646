"""Requests that wait for one model, and which of them run next. Plain state: its owner holds the lock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

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
    """What runs next, and what was found dead on the way."""

    slices: list[Slice] = field(default_factory=list)
    rows: int = 0
    dead: list[tuple[Work, Death]] = field(default_factory=list)


class RequestQueue:
    """First come, first served; requests of equal layout run together.

    `max_size` counts requests, `max_bytes` the messages they came in. A request that finds the queue empty is always
    taken, so that one request larger than `max_bytes` can still be served.
    """

    def __init__(self, max_size: int, max_bytes: int) -> None:
        self._max_size = max_size
        self._max_bytes = max_bytes
        self._by_key: dict[str, deque[Work]] = {}
        self._arrivals = 0
        self._bytes = 0
        self._size = 0
        self._held = 0
        """Of `_size`, those that are held back."""

    def __len__(self) -> int:
        """Requests that may run; those held back wait too, and count for the limits alone."""
        return self._size - self._held

    def push(self, work: Work) -> None:
        """Takes a request. Raises QueueFull."""
        nbytes = work.nbytes
        if self._size >= self._max_size or (self._size and self._bytes + nbytes > self._max_bytes):
            raise self._full()
        self._arrivals += 1
        work.sequence = self._arrivals
        self._bytes += nbytes
        self._size += 1
        key = work.layout.key
        waiting = self._by_key.get(key)
        if waiting is None:
            self._by_key[key] = deque((work,))
        else:
            waiting.append(work)

    def hold(self, nbytes: int) -> None:
        """Counts a request that its owner holds back until another one is done. Raises QueueFull.

        After `let_go` the same request can be pushed at once, whatever the limits: it has its place.
        """
        if self._size >= self._max_size or (self._size and self._bytes + nbytes > self._max_bytes):
            raise self._full()
        self._size += 1
        self._held += 1
        self._bytes += nbytes

    def let_go(self, nbytes: int) -> None:
        """Counts a request no more that was held back."""
        self._size -= 1
        self._held -= 1
        self._bytes -= nbytes

    def pick(self, now_ns: int, max_rows: int) -> Pick:
        """Takes out up to `max_rows` rows of the layout whose first request came first.

        A request that fits into a batch is never split. One that is larger than `max_rows` gives a part of itself and
        stays at the head for the next pick.
        """
        pick = Pick()
        while self._by_key and not pick.rows:
            key = self._oldest_key()
            waiting = self._by_key[key]
            while waiting and pick.rows < max_rows:
                work = waiting[0]
                if (dead := _death(work, now_ns)) is not None:
                    self._drop_first(waiting)
                    pick.dead.append((work, dead))
                    continue
                left = work.rows - work.next_row
                room = max_rows - pick.rows
                if left > room and work.rows <= max_rows:
                    break
                taken = min(left, room)
                if taken < left and work.assembly is None:
                    work.assembly = Assembly(work.rows)
                pick.slices.append((work, work.next_row, work.next_row + taken))
                pick.rows += taken
                work.next_row += taken
                if work.next_row == work.rows:
                    self._drop_first(waiting)
            if not waiting:
                del self._by_key[key]
        return pick

    def due_ns(self, max_rows: int, delay_ns: int) -> int:
        """When the next batch is to run, on the clock of `arrived_ns`, where requests wait up to `delay_ns` for others.

        0, which is in the past, where a batch is full. The queue must not be empty.
        """
        waiting = self._by_key[self._oldest_key()]
        rows = 0
        for work in waiting:
            rows += work.rows - work.next_row
            if rows >= max_rows or work.assembly is not None:
                return 0
        return waiting[0].arrived_ns + delay_ns

    def take_all(self) -> list[Work]:
        """Empties the queue, but for those held back."""
        works = [work for waiting in self._by_key.values() for work in waiting]
        self._by_key.clear()
        self._bytes -= sum(work.nbytes for work in works)
        self._size = self._held
        return works

    def _full(self) -> QueueFull:
        if self._size >= self._max_size:
            return QueueFull(f"{self._max_size} requests wait")
        return QueueFull(f"{self._bytes} of {self._max_bytes} bytes of requests wait")

    def _oldest_key(self) -> str:
        if len(self._by_key) == 1:
            return next(iter(self._by_key))
        return min(self._by_key, key=lambda key: self._by_key[key][0].sequence)

    def _drop_first(self, waiting: deque[Work]) -> None:
        work = waiting.popleft()
        self._size -= 1
        self._bytes -= work.nbytes


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
