"""Forms batches of the requests that wait while the last batch runs.

No timer unless the model asks for one: an idle instance takes what is there at once, and under load the run itself is
the time in which the next batch gathers. So a lone request waits for nothing, and batches grow with the load.

An instance is a permit to run one batch at a time. A thread of the batcher's own holds it, woken by `start`; or the
thread that brought the requests does, in `run_here`, which saves a lone request the hand-over to another thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from inferd_server.errors import DeadlineExceeded, Draining, QueueTimeout, RuntimeFailure, ServerError
from inferd_server.observability.failures import reason_of
from inferd_server.observability.statistics import Stages, Stamps, Tally, stages_of, stamps_of
from inferd_server.runtime.backend import RuntimeModel
from inferd_server.scheduling import batch
from inferd_server.scheduling.counting import Counting
from inferd_server.scheduling.observer import Observer
from inferd_server.scheduling.request_queue import Death, Pick, RequestQueue
from inferd_server.scheduling.scheduler import Closed
from inferd_server.scheduling.work import Slice, Work

_LOG = logging.getLogger(__name__)


class DynamicBatcher(Counting):
    """Owns the queue of one model version and the instances that empty it.

    `max_batch_size` is rows a run, 0 for a model without a batch axis. `instances` batches run at the same time.
    `max_queue_delay_ns` is how long a batch that is not full waits for more rows before it runs; one of
    `preferred_rows` waits no longer either, 0 for none. `statistics` counts every request from `enqueue` on; an
    `observer` is told of each. `on_gone` is told of requests that are not run because their callers have gone: their
    replies are not completed.
    """

    def __init__(
        self,
        model: RuntimeModel,
        *,
        name: str,
        max_batch_size: int,
        instances: int,
        queue: RequestQueue,
        max_queue_delay_ns: int = 0,
        preferred_rows: int = 0,
        on_gone: Callable[[Work], None] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(instances, clock_ns, observer)
        self._tallies = list(self.statistics.tallies)
        """Those of the instances that idle."""
        self._model = model
        self._output_names = [spec.name for spec in model.signature.outputs]
        self._batched = max_batch_size > 0
        self._max_rows = max(1, max_batch_size)
        self._enough_rows = preferred_rows or self._max_rows
        self._queue = queue
        self._delay_ns = max_queue_delay_ns if self._batched else 0
        self._on_gone = on_gone
        self._lock = threading.Lock()
        self._work_or_close = threading.Condition(self._lock)
        self._all_idle = threading.Condition(self._lock)
        self._closed = False
        self._given_up = False
        self._instances = instances
        self._idle = instances
        for number in range(instances):
            threading.Thread(target=self._run_instance, name=f"{name}-{number}", daemon=True).start()

    def enqueue(self, work: Work) -> None:
        """Takes a request over: from here on the batcher completes it, once `start` or `run_here` is called.

        Raises QueueFull and Closed, and then the request is still the caller's.
        """
        with self._lock:
            if self._closed:
                raise Closed
            self._queue.push(work)

    def hold(self, nbytes: int) -> None:
        """Lets a request wait that stays its owner's: not to run before another one is done, but in the limits.

        Raises QueueFull and Closed.
        """
        with self._lock:
            if self._closed:
                raise Closed
            self._queue.hold(nbytes)

    def let_go(self, nbytes: int) -> None:
        """Undoes a `hold`: the request has ended without a run."""
        with self._lock:
            self._queue.let_go(nbytes)

    def enqueue_held(self, work: Work) -> None:
        """Takes over a request that was held, and so accepted: even while the batcher closes, and with no limit.

        Raises Closed where what waits was given up; the request is let go then, and still the caller's.
        """
        with self._lock:
            self._queue.let_go(work.nbytes)
            if self._given_up:
                raise Closed
            self._queue.push(work)

    def fail_held(self, work: Work, error: ServerError) -> None:
        """Counts and fails a request that was held, and that the batcher does not have: it is let go, or refused."""
        self._count_failure(work, error, self._clock_ns())
        work.reply.fail(error)

    def start(self) -> None:
        """Wakes an idle instance for what is enqueued; where all run, they find it when they are done."""
        if self._idle:
            with self._lock:
                self._work_or_close.notify()

    @property
    def pending(self) -> int:
        """Requests that wait, those included that are held."""
        return self._queue.waiting

    @property
    def can_run_here(self) -> bool:
        """Whether `run_here` has something to gain: an instance idles, and batches wait for nothing."""
        return self._idle > 0 and not self._delay_ns

    def run_here(self) -> None:
        """Runs what is enqueued in the calling thread, until nothing is left; returns at once where no instance idles.

        What arrives meanwhile is run too: only a thread that others can do without may call this.
        """
        self._run_batches()

    def close(self, timeout: float) -> bool:
        """Takes no more requests, finishes those it has, and ends the instances.

        What has not begun to run after `timeout` seconds is failed with Draining. False where a run still goes on.
        """
        with self._lock:
            self._closed = True
            self._work_or_close.notify_all()
            self._all_idle.wait_for(lambda: self._idle == self._instances and not len(self._queue), timeout)
            self._given_up = True
            left = self._queue.take_all()
            idle = self._idle == self._instances
        for work in left:
            self._give_up([(work, work.next_row, work.rows)], Draining())
        return idle

    def _run_instance(self) -> None:
        while self._wait_for_work():
            self._run_batches()

    def _wait_for_work(self) -> bool:
        """Waits until a batch is due and an instance idles. False once the batcher is closed and its queue empty."""
        with self._lock:
            while True:
                wait: float | None = None
                if len(self._queue) and self._idle:
                    wait = self._seconds_until_due()
                    if not wait:
                        return True
                elif self._closed and not len(self._queue):
                    return False
                self._work_or_close.wait(wait)

    def _seconds_until_due(self) -> float:
        """0 where the next batch is to run now."""
        if not self._delay_ns or self._closed:
            return 0.0
        return max(0, self._queue.due_ns(self._enough_rows, self._delay_ns) - self._clock_ns()) / 1e9

    def _run_batches(self) -> None:
        """Holds an instance while batches are due."""
        with self._lock:
            if not self._idle or not len(self._queue):
                return
            self._idle -= 1
            tally = self._tallies.pop()
            pick: Pick | None = self._pick()
        while pick is not None:
            for work, death in pick.dead:
                self._bury(work, death, pick.now_ns)
            if pick.slices:
                self._execute(pick.slices, pick.rows, pick.now_ns, tally)
            with self._lock:
                if len(self._queue) and not self._seconds_until_due():
                    pick = self._pick()
                else:
                    pick = None
                    self._tallies.append(tally)
                    self._idle += 1
                    if self._closed or len(self._queue):
                        self._work_or_close.notify_all()
                        self._all_idle.notify_all()

    def _pick(self) -> Pick:
        pick = self._queue.pick(self._clock_ns(), self._max_rows)
        if self._idle and len(self._queue):
            self._work_or_close.notify()
        return pick

    def _execute(self, slices: Sequence[Slice], rows: int, picked_ns: int, tally: Tally) -> None:
        try:
            inputs = batch.gather(slices, rows)
            began_ns = self._clock_ns()
            outputs = self._model.run(inputs)
            ended_ns = self._clock_ns()
            if self._batched:
                batch.check_rows(self._output_names, outputs, rows)
        except Exception as error:  # noqa: BLE001 - an instance outlives any failure of a run
            self._fail(slices, error, tally)
            return
        with tally.lock:
            failed = batch.scatter(slices, outputs)
            done_ns = self._clock_ns()
            stamps = (picked_ns, began_ns, ended_ns, done_ns)
            arrived = [work.arrived_ns for work, _, _ in slices if work.assembly is None]
            split: Sequence[tuple[Work, Stages]] = ()
            if failed or len(arrived) != len(slices):
                arrived, split = self._count_special(slices, failed, stamps, tally)
            tally.count_batch(rows, arrived, stamps)
        if self._observer is not None:
            gone = {work for work, _ in failed}
            whole = [work for work, _, _ in slices if work.assembly is None and work not in gone]
            if whole:
                self._observer.answered(whole, stamps)
            for work, stages in split:
                self._observer.answered([work], stamps_of(work.arrived_ns, stages))
            for work, told in failed:
                self._observer.failed(work, told, done_ns - work.arrived_ns)

    def _count_special(
        self, slices: Sequence[Slice], failed: Sequence[tuple[Work, ServerError]], stamps: Stamps, tally: Tally
    ) -> tuple[list[int], list[tuple[Work, Stages]]]:
        """Counts the failed requests of a batch, and those that are split and now have all of their answer.

        Returns the arrivals of all others, and the split ones that it has counted.
        """
        for work, error in failed:
            self.statistics.failures.count(reason_of(error), stamps[-1] - work.arrived_ns)
        gone = {work for work, _ in failed}
        arrived: list[int] = []
        split: list[tuple[Work, Stages]] = []
        for work, start, stop in slices:
            if work.assembly is not None:
                stages = work.assembly.spend(stop - start, stages_of(work.arrived_ns, stamps))
                if stages is not None:
                    tally.count_request(stages)
                    split.append((work, stages))
            elif work not in gone:
                arrived.append(work.arrived_ns)
        return arrived, split

    def _fail(self, slices: Sequence[Slice], error: Exception, tally: Tally) -> None:
        if len(slices) > 1:
            # One caller's input must not fail the others': each gets a run of its own.
            for piece in slices:
                self._execute([piece], piece[2] - piece[1], self._clock_ns(), tally)
            return
        if not isinstance(error, ServerError):
            _LOG.exception("a batch failed", exc_info=error)
            error = RuntimeFailure(f"the model failed to run: {error}")
        self._give_up(slices, error)

    def _give_up(self, slices: Sequence[Slice], error: ServerError) -> None:
        """Fails the requests of a batch."""
        for work, _, _ in slices:
            if work.assembly is None or work.assembly.fail():
                self._count_failure(work, error, self._clock_ns())
                work.reply.fail(error)

    def _bury(self, work: Work, death: Death, now_ns: int) -> None:
        """Counts a dead request, and tells its caller where there is one who does not know."""
        if death is Death.DEADLINE or death is Death.TIMEOUT:
            error = DeadlineExceeded() if death is Death.DEADLINE else QueueTimeout()
            self._count_failure(work, error, now_ns)
            work.reply.fail(error)
        elif death is Death.CANCELLED and (work.assembly is None or work.assembly.fail()):
            # A transport that keeps deadlines itself says of either that the caller has gone.
            late = work.reply.deadline_ns is not None and work.reply.deadline_ns <= now_ns
            self._count_failure(work, DeadlineExceeded() if late else None, now_ns)
            if self._on_gone is not None:
                self._on_gone(work)
