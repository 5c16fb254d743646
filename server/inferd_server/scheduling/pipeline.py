"""Runs the steps of an ensemble: each is a request to its model's own scheduler, where it batches with all others.

What a step gives is passed on as it is. Steps that do not need each other are enqueued together. Everything here runs
on the threads of the models' batchers, and so only enqueues and starts, and never runs or waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from inferd_protocol.tensors import Tensor

from inferd_server.errors import DeadlineExceeded, Draining, RuntimeFailure, ServerError
from inferd_server.observability.statistics import Stamps
from inferd_server.request import AnswerForm, Content
from inferd_server.scheduling import batch
from inferd_server.scheduling.counting import Counting
from inferd_server.scheduling.graph import Bind, BoundStep, Graph
from inferd_server.scheduling.observer import Observer
from inferd_server.scheduling.scheduler import Closed, Scheduler
from inferd_server.scheduling.work import Work


class Pipeline(Counting):
    """The scheduler of an ensemble. A request that it answers is counted as one run, from its arrival to the last step.

    `bind` is asked anew for each step of each request, so that a step follows what its model is replaced by.
    """

    def __init__(
        self,
        graph: Graph,
        bind: Bind,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(1, clock_ns, observer)
        self.graph = graph
        self._bind = bind
        self._lock = threading.Lock()
        self._none_left = threading.Condition(self._lock)
        self._closed = False
        self._runs: set[_Run] = set()
        self._to_start: set[Scheduler] = set()
        self.first = tuple(
            number for number, node in enumerate(graph.nodes) if all(slot < graph.inputs for slot in node.inputs)
        )
        self.takers = tuple(
            tuple(number for number, node in enumerate(graph.nodes) if slot in node.inputs)
            for slot in range(len(graph.tensors))
        )

    @property
    def pending(self) -> int:
        """Requests that wait, for their steps."""
        return len(self._runs)

    def enqueue(self, work: Work) -> None:
        """Takes a request over, and enqueues its first steps. Raises what a step is refused with, and Closed."""
        for number in range(len(self.graph.nodes)):
            # What cannot be ended need not begin.
            self._bind(number)
        run = _Run(self, work)
        with self._lock:
            if self._closed:
                raise Closed
            self._runs.add(run)
        begun: set[Scheduler] = set()
        try:
            for number in self.first:
                begun.add(self.launch(run, number))
        except BaseException:
            # The steps already enqueued find it over when they are picked. Where one of them has ended it meanwhile,
            # its caller knows.
            caller_waits = run.end()
            for scheduler in begun:
                scheduler.start()
            if caller_waits:
                raise
            return
        with self._lock:
            self._to_start |= begun

    def start(self) -> None:
        """Starts the schedulers of what is enqueued."""
        for scheduler in self._take_to_start():
            scheduler.start()

    @property
    def can_run_here(self) -> bool:
        """Whether a first step can be run in the calling thread."""
        return any(scheduler.can_run_here for scheduler in tuple(self._to_start))

    def run_here(self) -> None:
        """As `start`, with one of the first steps in the calling thread."""
        here: Scheduler | None = None
        for scheduler in self._take_to_start():
            if here is None and scheduler.can_run_here:
                here = scheduler
            else:
                scheduler.start()
        if here is not None:
            here.run_here()

    def close(self, timeout: float) -> bool:
        """Takes no more requests, and waits `timeout` seconds for those it has; then it fails them with Draining.

        True: nothing runs here, and the steps' models are not closed by this.
        """
        with self._lock:
            self._closed = True
            self._none_left.wait_for(lambda: not self._runs, timeout)
            left = list(self._runs)
        for run in left:
            run.fail(Draining())
        return True

    def launch(self, run: _Run, number: int) -> Scheduler:
        """Enqueues a step whose inputs are there, with the scheduler that it returns.

        Raises the step's refusal, a ServerError that names it.
        """
        bound = self._bind(number)
        try:
            while True:
                contents = [run.contents[slot] for slot in bound.inputs]
                layout, rows = bound.arrange(contents, [run.shapes[slot] for slot in bound.inputs])
                nbytes = sum(map(_size, contents))
                reply = _StepReply(run, bound)
                now_ns = self._clock_ns()
                expires_ns = bound.expires_ns(now_ns, run.work.expires_ns)
                priority = run.work.priority
                step = Work(contents, rows, layout, reply, bound.finish, now_ns, expires_ns, nbytes, priority)
                try:
                    bound.scheduler.enqueue(step)
                except Closed:
                    closed, bound = bound, self._bind(number)
                    if bound.scheduler is closed.scheduler:
                        raise Draining from None
                    continue
                return bound.scheduler
        except ServerError as error:
            raise error.within(bound.name) from error

    def answer(self, work: Work, outputs: Sequence[Tensor]) -> None:
        """Answers a request with the ensemble's outputs, and counts it."""
        (tally,) = self.statistics.tallies
        with tally.lock:
            ended_ns = self._clock_ns()
            failed = batch.scatter([(work, 0, work.rows)], outputs)
            done_ns = self._clock_ns()
            arrived_ns = work.arrived_ns
            stamps: Stamps = (arrived_ns, arrived_ns, ended_ns, done_ns)
            tally.count_batch(work.rows, () if failed else (arrived_ns,), stamps)
        for _, error in failed:
            self._count_failure(work, error, done_ns)
        if not failed and self._observer is not None:
            self._observer.answered([work], stamps)

    def fail(self, work: Work, error: ServerError) -> None:
        """Fails a request, and counts it."""
        self._count_failure(work, error, self._clock_ns())
        work.reply.fail(error)

    def lose(self, work: Work) -> None:
        """Counts a request whose caller has gone."""
        now_ns = self._clock_ns()
        # A transport that keeps deadlines itself says of either that the caller has gone.
        late = work.reply.deadline_ns is not None and work.reply.deadline_ns <= now_ns
        self._count_failure(work, DeadlineExceeded() if late else None, now_ns)

    def ended(self, run: _Run) -> None:
        """Lets go of a request."""
        with self._lock:
            self._runs.discard(run)
            if self._closed and not self._runs:
                self._none_left.notify_all()

    def _take_to_start(self) -> set[Scheduler]:
        with self._lock:
            taken, self._to_start = self._to_start, set()
        return taken


class _Run:
    """One request on its way through the steps. It ends once: answered, failed, or found to be for nobody."""

    __slots__ = ("_lock", "_missing", "_outputs", "_over", "_pipeline", "contents", "shapes", "work")

    def __init__(self, pipeline: Pipeline, work: Work) -> None:
        graph, layout = pipeline.graph, work.layout
        free = len(graph.tensors) - graph.inputs
        rows = (work.rows,) if layout.batched else ()
        self.work = work
        self.contents: list[Content] = [*work.contents, *([memoryview(b"")] * free)]
        """By place, as `shapes`: of the request's own inputs, and of what the steps made of them so far."""
        self.shapes: list[tuple[int, ...]] = [*(rows + shape for shape in layout.row_shapes), *([()] * free)]
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._missing = [sum(slot >= graph.inputs for slot in node.inputs) for node in graph.nodes]
        """How many of a step's inputs are not there yet."""
        self._outputs: dict[int, Tensor] = {}
        """By place, those to answer."""
        self._over = False

    def end(self) -> bool:
        """Whether it is this call that ended it, so that its reply is the caller's to complete."""
        with self._lock:
            if self._over:
                return False
            self._over = True
        self._pipeline.ended(self)
        return True

    def is_for_nobody(self) -> bool:
        """Whether it is over, or its caller has gone, which ends it."""
        if self._over:
            return True
        if not self.work.reply.cancelled():
            return False
        if self.end():
            self._pipeline.lose(self.work)
        return True

    def fail(self, error: ServerError) -> None:
        """Ends it with an error, where it has not ended."""
        if self.end():
            self._pipeline.fail(self.work, error)

    def advance(self, bound: BoundStep, outputs: Sequence[Tensor]) -> None:
        """Takes what a step made, and enqueues what waited for it; answers the request with the last of it."""
        made = [(slot, outputs[place]) for place, slot in bound.outputs]
        graph = self._pipeline.graph
        if self.work.layout.batched:
            for slot, array in made:
                if array.shape[:1] != (self.work.rows,):
                    error = RuntimeFailure(
                        f"tensor '{graph.tensors[slot]}' has shape {list(array.shape)} for a request of "
                        f"{self.work.rows} rows: expected as many rows as went in"
                    )
                    self.fail(error.within(bound.name))
                    return
        ready: list[int] = []
        with self._lock:
            if self._over:
                return
            for slot, array in made:
                self.contents[slot] = array
                self.shapes[slot] = array.shape
                if slot in graph.outputs:
                    self._outputs[slot] = array
                for taker in self._pipeline.takers[slot]:
                    self._missing[taker] -= 1
                    if not self._missing[taker]:
                        ready.append(taker)
            done = len(self._outputs) == len(graph.outputs)
        if done:
            self._answer()
            return
        try:
            for taker in ready:
                self._pipeline.launch(self, taker).start()
        except ServerError as error:
            self.fail(error)

    def _answer(self) -> None:
        if self.end():
            outputs = [self._outputs[slot] for slot in self._pipeline.graph.outputs]
            self._pipeline.answer(self.work, outputs)


class _StepReply:
    """The reply to one step's request: its answer is the run's next stage."""

    __slots__ = ("_bound", "_run", "deadline_ns", "request_id", "trace")

    def __init__(self, run: _Run, bound: BoundStep) -> None:
        self._run = run
        self._bound = bound
        self.deadline_ns = run.work.reply.deadline_ns
        self.request_id = run.work.reply.request_id
        self.trace = run.work.reply.trace

    def cancelled(self) -> bool:
        """Whether the step is for nobody: its request has ended, or its caller has gone."""
        return self._run.is_for_nobody()

    def send(self, form: AnswerForm, outputs: Sequence[Tensor]) -> None:  # noqa: ARG002 - all answers have one form
        """Passes the outputs on: what follows from them is the whole request's, and counted there."""
        self._run.advance(self._bound, outputs)

    def fail(self, error: ServerError) -> None:
        """Fails the whole request."""
        self._run.fail(error.within(self._bound.name))


def _size(content: Content) -> int:
    """What a tensor holds in memory, bytes."""
    if isinstance(content, np.ndarray) and content.dtype.hasobject:
        return sum(len(element) for element in content.ravel().tolist())
    return content.nbytes
