"""A request as the schedulers see it: arrays, rows, and where the outputs go."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from inferd_protocol.tensors import Tensor

from inferd_server.errors import RuntimeFailure, ServerError


class Completion(Protocol):
    """Where the outputs of a `Work` go. Completed once, from any thread."""

    deadline_ns: int | None
    """When its caller stops waiting, on `time.monotonic_ns`'s clock; None for never."""

    def cancelled(self) -> bool:
        """Whether nobody waits for the outputs."""

    def send(self, outputs: Sequence[Tensor]) -> None:
        """Takes the outputs, in the model's order."""

    def fail(self, error: ServerError) -> None:
        """Takes the reason why there are none."""


@dataclass(slots=True, eq=False)
class Work:
    """A request: `inputs` in the model's order, each with `rows` rows.

    Requests of equal `key` may share a batch. A request to a model without a batch axis is one row.
    """

    inputs: Sequence[Tensor]
    rows: int
    key: Hashable
    completion: Completion
    expires_ns: int | None = None
    """When the request's own queue timeout ends, on `time.monotonic_ns`'s clock."""
    nbytes: int = 0
    """What the request holds in memory while it waits, bytes."""
    sequence: int = field(default=0, init=False)
    """The order of arrival, set by the queue."""
    next_row: int = field(default=0, init=False)
    """The first row that is not yet in a batch."""
    assembly: Assembly | None = field(default=None, init=False)
    """The outputs so far, where the request is split over several batches."""


class Slice(NamedTuple):
    """Rows `start` to `stop` of a request."""

    work: Work
    start: int
    stop: int


class Assembly:
    """The outputs of a request that is split over several batches, which may run at the same time."""

    def __init__(self, rows: int) -> None:
        self.failed = False
        self._rows = rows
        self._missing = rows
        self._outputs: list[Tensor] = []
        self._lock = threading.Lock()

    def add(self, piece: Slice, outputs: Sequence[Tensor]) -> None:
        """Copies the outputs of `piece` to their place; completes the request with the last of them."""
        with self._lock:
            if self.failed:
                return
            if not self._outputs:
                self._outputs = [np.empty((self._rows, *array.shape[1:]), array.dtype) for array in outputs]
            fits = all(part.shape[1:] == whole.shape[1:] for whole, part in zip(self._outputs, outputs, strict=True))
            if fits:
                for whole, part in zip(self._outputs, outputs, strict=True):
                    whole[piece.start : piece.stop] = part
                self._missing -= piece.stop - piece.start
            done = self._missing == 0
        if not fits:
            self.fail(
                piece, RuntimeFailure("batches of a split request gave outputs of different shapes: send fewer rows")
            )
        elif done:
            piece.work.completion.send(self._outputs)

    def fail(self, piece: Slice, error: ServerError) -> None:
        """Fails the request, unless a batch before this one has."""
        with self._lock:
            first, self.failed = not self.failed, True
        if first:
            piece.work.completion.fail(error)
