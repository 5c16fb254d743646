"""A request as the schedulers see it: contents, rows, and where the outputs go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from inferd_protocol.tensors import Tensor

from inferd_server.errors import RuntimeFailure, ServerError
from inferd_server.observability.statistics import Stages
from inferd_server.request import Content, Reply

Finish: TypeAlias = Callable[[Reply, Sequence[Tensor]], ServerError | None]
"""Answers a request with the outputs of its rows, in the model's order. The arrays are never written again: who keeps
one, keeps the outputs of the whole run.

Returns the error where the request was told one instead."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What requests have in common that may share a batch: for each input the dtype and the shape of one row.

    A request to a model without a batch axis is one row: `batched` is False, and the shape of a row is the tensor's.
    """

    dtypes: tuple[np.dtype[np.generic], ...]
    row_shapes: tuple[tuple[int, ...], ...]
    batched: bool
    key: str
    """Equal for equal layouts. A string, because a string hashes once in its life."""

    @classmethod
    def of(
        cls, dtypes: Sequence[np.dtype[np.generic]], row_shapes: Sequence[tuple[int, ...]], *, batched: bool
    ) -> Layout:
        """A layout with its key."""
        # The dtypes are the model's: within one queue only shapes differ.
        shapes = tuple(row_shapes)
        return cls(tuple(dtypes), shapes, batched, str(shapes))

    def array(self, index: int, content: Content, rows: int) -> Tensor:
        """The content of input `index` as an array of `rows` rows: a view where the elements are aligned.

        Raises InvalidRequest where it is in shared memory that has become too short.
        """
        if isinstance(content, np.ndarray):
            return content
        row_shape = self.row_shapes[index]
        shape = (rows, *row_shape) if self.batched else row_shape
        if not isinstance(content, memoryview):
            array = np.empty(shape, self.dtypes[index])
            content.read_into(array.data)
            return array
        if not len(content):
            return np.empty(shape, self.dtypes[index])
        array = np.frombuffer(content, self.dtypes[index]).reshape(shape)
        # Within a message a tensor begins anywhere, and C++ may read a float only where a float may be.
        return array if array.flags.aligned else array.copy()


class Work:
    """A request: a content for each of the model's inputs, of `rows` rows in all, and the reply to it.

    Requests of equal `layout.key` may share a batch.
    """

    __slots__ = (
        "arrived_ns",
        "assembly",
        "contents",
        "expires_ns",
        "finish",
        "layout",
        "nbytes",
        "next_row",
        "priority",
        "reply",
        "rows",
        "sequence",
    )

    def __init__(
        self,
        contents: Sequence[Content],
        rows: int,
        layout: Layout,
        reply: Reply,
        finish: Finish,
        arrived_ns: int = 0,
        expires_ns: int | None = None,
        nbytes: int = 0,
        priority: int = 0,
    ) -> None:
        self.contents = contents
        self.rows = rows
        self.layout = layout
        self.reply = reply
        self.finish = finish
        self.arrived_ns = arrived_ns
        """On `time.monotonic_ns`'s clock, as is `expires_ns`: when the request's own queue timeout ends."""
        self.expires_ns = expires_ns
        self.nbytes = nbytes
        """What the request holds in memory while it waits, bytes."""
        self.priority = priority
        """1 runs before 2, and 0, none, after all others."""
        self.sequence = 0
        """The order of arrival, set by the queue."""
        self.next_row = 0
        """The first row that is not yet in a batch."""
        self.assembly: Assembly | None = None
        """The outputs so far, where the request is split over several batches."""


Slice: TypeAlias = tuple[Work, int, int]
"""Rows `start` to `stop` of a request."""


class Assembly:
    """The outputs of a request that is split over several batches, which may run at the same time."""

    def __init__(self, rows: int) -> None:
        self.failed = False
        self._rows = rows
        self._missing = rows
        self._uncounted = rows
        self._spent_ns = [0, 0, 0]
        self._outputs: list[Tensor] = []
        self._lock = threading.Lock()

    def add(self, piece: Slice, outputs: Sequence[Tensor]) -> ServerError | None:
        """Copies the outputs of `piece` to their place; answers the request with the last of them.

        Returns the error where the request was told one instead.
        """
        work, start, stop = piece
        with self._lock:
            if self.failed:
                return None
            if not self._outputs:
                self._outputs = [np.empty((self._rows, *array.shape[1:]), array.dtype) for array in outputs]
            fits = all(part.shape[1:] == whole.shape[1:] for whole, part in zip(self._outputs, outputs, strict=True))
            if fits:
                for whole, part in zip(self._outputs, outputs, strict=True):
                    whole[start:stop] = part
                self._missing -= stop - start
            done = self._missing == 0
        if not fits:
            error = RuntimeFailure("batches of a split request gave outputs of different shapes: send fewer rows")
            if self.fail():
                work.reply.fail(error)
                return error
        elif done:
            told = work.finish(work.reply, self._outputs)
            if told is not None:
                self.fail()
            return told
        return None

    def spend(self, rows: int, stages: Stages) -> Stages | None:
        """Adds up the stages of the pieces, of `rows` rows each. Returns the request's own with the last of them.

        Its time in the queue is what no piece of it was gathered, run or answered in. None where it failed.
        """
        with self._lock:
            self._uncounted -= rows
            for index, ns in enumerate(stages[1:]):
                self._spent_ns[index] += ns
            if self.failed or self._uncounted:
                return None
            return Stages(max(0, sum(stages) - sum(self._spent_ns)), *self._spent_ns)

    def fail(self) -> bool:
        """Gives the request up. Whether it was not given up before, so that its caller is still to be told."""
        with self._lock:
            first, self.failed = not self.failed, True
        return first
