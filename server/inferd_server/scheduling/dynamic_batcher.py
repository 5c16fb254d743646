"""Forms batches of the requests that wait while the last batch runs.

No timer: an idle instance takes what is there at once, and under load the run itself is the time in which the next
batch gathers. So a lone request waits for nothing, and batches grow with the load.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from inferd_server.errors import DeadlineExceeded, Draining, QueueTimeout, RuntimeFailure, ServerError
from inferd_server.runtime.backend import RuntimeModel
from inferd_server.scheduling import batch
from inferd_server.scheduling.request_queue import Death, Pick, RequestQueue
from inferd_server.scheduling.work import Slice, Work

_LOG = logging.getLogger(__name__)


class Closed(Exception):
    """The batcher takes no more requests: its version is being replaced or unloaded."""


class DynamicBatcher:
    """Owns the queue of one model version and the instances that empty it.

    `max_batch_size` is rows a run, 0 for a model without a batch axis. `instances` batches run at the same time.
    """

    def __init__(
        self,
        model: RuntimeModel,
        *,
        name: str,
        max_batch_size: int,
        instances: int,
        queue: RequestQueue,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._model = model
        self._output_names = [spec.name for spec in model.signature.outputs]
        self._batched = max_batch_size > 0
        self._max_rows = max(1, max_batch_size)
        self._queue = queue
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._work_or_close = threading.Condition(self._lock)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run_instance, name=f"{name}-{number}", daemon=True)
            for number in range(instances)
        ]
        for thread in self._threads:
            thread.start()

    def enqueue(self, work: Work) -> None:
        """Takes a request over: from here on the batcher completes it.

        Raises QueueFull and Closed, and then the request is still the caller's.
        """
        with self._lock:
            if self._closed:
                raise Closed
            self._queue.push(work)
            self._work_or_close.notify()

    def close(self, timeout: float) -> None:
        """Takes no more requests, finishes those it has, and ends the instances.

        What has not begun to run after `timeout` seconds is failed with Draining.
        """
        ends = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            self._work_or_close.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        with self._lock:
            left = self._queue.take_all()
        for work in left:
            batch.fail([Slice(work, work.next_row, work.rows)], Draining())

    def _run_instance(self) -> None:
        while (pick := self._next_pick()) is not None:
            for work, death in pick.dead:
                _bury(work, death)
            if pick.slices:
                self._execute(pick.slices, pick.rows)

    def _next_pick(self) -> Pick | None:
        """Waits for requests; None once the batcher is closed and its queue empty."""
        with self._lock:
            while not len(self._queue):
                if self._closed:
                    return None
                self._work_or_close.wait()
            return self._queue.pick(self._clock_ns(), self._max_rows)

    def _execute(self, slices: Sequence[Slice], rows: int) -> None:
        try:
            outputs = self._model.run(batch.gather(slices))
            if self._batched:
                batch.check_rows(self._output_names, outputs, rows)
        except Exception as error:  # noqa: BLE001 - an instance outlives any failure of a run
            self._fail(slices, error)
            return
        batch.scatter(slices, outputs)

    def _fail(self, slices: Sequence[Slice], error: Exception) -> None:
        if len(slices) > 1:
            # One caller's input must not fail the others': each gets a run of its own.
            for piece in slices:
                self._execute([piece], piece.stop - piece.start)
            return
        if not isinstance(error, ServerError):
            _LOG.exception("a batch failed", exc_info=error)
            error = RuntimeFailure(f"the model failed to run: {error}")
        batch.fail(slices, error)


def _bury(work: Work, death: Death) -> None:
    """Tells the caller of a dead request, where there is one who does not know."""
    if death is Death.DEADLINE:
        work.completion.fail(DeadlineExceeded())
    elif death is Death.TIMEOUT:
        work.completion.fail(QueueTimeout())
