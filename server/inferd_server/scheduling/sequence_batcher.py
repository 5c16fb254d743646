"""Runs the requests of each sequence one after another, and those of different sequences together.

A front of the dynamic batcher, which picks, gathers, runs and scatters as ever. The front holds back what follows a
request of the same sequence that is not done, puts the sequence's state beside what the caller sent, and takes the new
state out of what the run gave. The thread that ran a request passes on the one that waits behind it.

A request that does not end well, because it failed, its caller went or its time ran out, leaves the state as it was.
There is no clockwork: sequences that idle are dropped when the next request arrives, of whichever sequence.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from inferd_protocol.tensors import Tensor

from inferd_server.errors import Draining, InvalidRequest, ServerError, TooManySequences
from inferd_server.request import AnswerForm, Reply, SequenceStep
from inferd_server.runtime.backend import Signature
from inferd_server.scheduling.dynamic_batcher import DynamicBatcher
from inferd_server.scheduling.scheduler import Closed
from inferd_server.scheduling.sequence import SequenceModel
from inferd_server.scheduling.work import Work


class SequenceBatcher:
    """Owns the live sequences of one model version. Their requests go to `batcher`, which is told of by `gone`.

    A sequence is live from its first request's arrival to its last one's run. At most `max_sequences` are at once.
    """

    def __init__(
        self,
        batcher: DynamicBatcher,
        sequences: SequenceModel,
        *,
        model: str,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._batcher = batcher
        self._model = sequences
        self._name = model
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        """Taken before the batcher's, never after it."""
        self._live: dict[int | str, _Sequence] = {}
        self._idle: OrderedDict[int | str, _Sequence] = OrderedDict()
        """Those with no request here, the one that has idled longest first."""
        self._dropped: OrderedDict[int | str, None] = OrderedDict()
        """Ids of the last that were dropped, so that their callers can be told."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs that callers see."""
        return self._model.signature

    def enqueue(self, work: Work, step: SequenceStep) -> None:
        """Takes over a request of one row; it runs once those before it in its sequence are done.

        Raises InvalidRequest where its sequence is not live and it does not start one, TooManySequences, QueueFull and
        Closed, and then the request is still the caller's and its sequence is as it was.
        """
        for control in self._model.ids:
            control.check(step.id)
        with self._lock:
            self._drop_idle(work.arrived_ns)
            sequence = self._live.get(step.id)
            if sequence is None:
                sequence = self._new(step)
            turn = _Turn(self, sequence, work, step)
            if sequence.busy:
                self._batcher.hold(work.nbytes)
                sequence.waiting.append(turn)
                return
            self._batcher.enqueue(self._ready(turn))
            sequence.busy = True
            self._live[step.id] = sequence
            self._idle.pop(step.id, None)
            self._dropped.pop(step.id, None)

    def outputs(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Of the outputs of a run those that callers see."""
        return [outputs[place] for place in self._model.outputs]

    def state_after(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The state in the outputs of a run."""
        return self._model.state_after(outputs)

    def commit(self, sequence: _Sequence, state: list[Tensor] | None) -> list[Tensor] | None:
        """Keeps the state that a run left; None where it was the last one of the sequence. Returns the former one."""
        with self._lock:
            former, sequence.state = sequence.state, state
            if state is None and not sequence.waiting:
                # Before the answer: whoever has it may start another one in its place.
                self._forget(sequence)
        return former

    def undo(self, sequence: _Sequence, former: list[Tensor] | None) -> None:
        """Puts the state back that was before a `commit`: the caller was told an error instead of the answer."""
        with self._lock:
            # Another one may have begun under the same id, and then this one has ended after all.
            if self._live.setdefault(sequence.id, sequence) is sequence:
                sequence.state = former

    def advance(self, sequence: _Sequence) -> None:
        """Passes on the next request of a sequence whose last one is done."""
        while True:
            with self._lock:
                if not sequence.waiting:
                    self._rest(sequence)
                    return
                turn = sequence.waiting.popleft()
                error = self._pass_on(turn)
            if error is None:
                return
            self._batcher.fail_held(turn.work, error)

    def _new(self, step: SequenceStep) -> _Sequence:
        if not step.start:
            if step.id in self._dropped:
                raise InvalidRequest(
                    f"sequence {step.id} of model '{self._name}' was dropped, since it was idle for more than "
                    f"{self._model.idle_ns // 1000} microseconds: start it again with sequence_start"
                )
            raise self._not_live(step.id)
        if len(self._live) >= self._model.max_sequences:
            raise TooManySequences(self._name, self._model.max_sequences)
        return _Sequence(step.id)

    def _not_live(self, sequence_id: int | str) -> InvalidRequest:
        return InvalidRequest(
            f"inference request for sequence {sequence_id} to model '{self._name}' must specify the START flag on the "
            "first request of the sequence: none of that id is live, since it has ended, never began, or the model was "
            "loaded anew"
        )

    def _ready(self, turn: _Turn) -> Work:
        """The request as the batcher takes it: with the state as it is now, or as it is at the start."""
        work, state = turn.work, turn.sequence.state
        if turn.step.start or state is None:
            state = self._model.begin()
        contents, layout = self._model.inputs_of(work, turn.step, state)
        return Work(
            contents, 1, layout, turn, turn.finish, work.arrived_ns, work.expires_ns, work.nbytes, work.priority
        )

    def _pass_on(self, turn: _Turn) -> ServerError | None:
        """Gives the batcher a request that was held back. What it is to be failed with, where that cannot be."""
        if turn.sequence.state is None and not turn.step.start:
            self._batcher.let_go(turn.work.nbytes)
            return self._not_live(turn.step.id)
        try:
            self._batcher.enqueue_held(self._ready(turn))
        except Closed:
            return Draining()
        return None

    def _rest(self, sequence: _Sequence) -> None:
        sequence.busy = False
        if sequence.state is None:
            self._forget(sequence)
        else:
            sequence.idle_since_ns = self._clock_ns()
            self._idle[sequence.id] = sequence

    def _forget(self, sequence: _Sequence) -> None:
        # Another one may have begun under the same id.
        if self._live.get(sequence.id) is sequence:
            del self._live[sequence.id]

    def _drop_idle(self, now_ns: int) -> None:
        while self._idle:
            sequence_id, sequence = next(iter(self._idle.items()))
            if now_ns - sequence.idle_since_ns <= self._model.idle_ns:
                return
            del self._idle[sequence_id], self._live[sequence_id]
            self._dropped[sequence_id] = None
            if len(self._dropped) > self._model.max_sequences:
                self._dropped.popitem(last=False)


def gone(work: Work) -> None:
    """Tells the sequence of a request, taken from its front, that the request is not run: its caller has gone."""
    assert isinstance(work.reply, _Turn)
    work.reply.drop()


class _Sequence:
    """A live sequence. Its front's lock guards it."""

    __slots__ = ("busy", "id", "idle_since_ns", "state", "waiting")

    def __init__(self, sequence_id: int | str) -> None:
        self.id = sequence_id
        self.state: list[Tensor] | None = None
        """What the last request left; None before the first one's run and after the last one's."""
        self.busy = False
        """Whether a request of it is with the batcher."""
        self.waiting: deque[_Turn] = deque()
        """The requests held back."""
        self.idle_since_ns = 0


class _Turn:
    """A request of a sequence: the reply that the batcher completes, which lets the next request follow."""

    __slots__ = ("_after", "_front", "deadline_ns", "request_id", "sequence", "step", "trace", "work")

    def __init__(self, front: SequenceBatcher, sequence: _Sequence, work: Work, step: SequenceStep) -> None:
        self._front = front
        self.sequence = sequence
        self.work = work
        """As its caller's: without state, with the caller's own reply."""
        self.step = step
        self.request_id = work.reply.request_id
        self.deadline_ns = work.reply.deadline_ns
        self.trace = work.reply.trace
        self._after: list[Tensor] | None = None

    def cancelled(self) -> bool:
        return self.work.reply.cancelled()

    def finish(self, _: Reply, outputs: Sequence[Tensor]) -> ServerError | None:
        """Sets the state apart and has the rest answered, through `send` or `fail`."""
        self._after = None if self.step.end else self._front.state_after(outputs)
        return self.work.finish(self, self._front.outputs(outputs))

    def send(self, form: AnswerForm, outputs: Sequence[Tensor]) -> ServerError | None:
        former = self._front.commit(self.sequence, self._after)
        error = self.work.reply.send(form, outputs)
        if error is not None:
            self._front.undo(self.sequence, former)
        self._front.advance(self.sequence)
        return error

    def fail(self, error: ServerError) -> None:
        self.work.reply.fail(error)
        self._front.advance(self.sequence)

    def drop(self) -> None:
        self._front.advance(self.sequence)
