"""The sequence front over a model whose runs the test starts itself: no thread, no timing, only order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given
from hypothesis import strategies as st
from inferd_protocol import model_config_pb2
from inferd_protocol.datatypes import BY_NAME, BYTES
from inferd_protocol.reasons import Reason
from inferd_protocol.tensors import Tensor
from inferd_server.errors import (
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    QueueFull,
    QueueTimeout,
    RuntimeFailure,
    ServerError,
    TooManySequences,
)
from inferd_server.repository.model_config import ModelConfig, read_json, sequence_model
from inferd_server.request import Reply, SequenceStep
from inferd_server.runtime.backend import Dim, Signature, TensorSpec
from inferd_server.scheduling import sequence_batcher
from inferd_server.scheduling.dynamic_batcher import Closed, DynamicBatcher
from inferd_server.scheduling.request_queue import RequestQueue
from inferd_server.scheduling.sequence_batcher import SequenceBatcher
from inferd_server.scheduling.work import Finish, Layout, Work

FP32 = BY_NAME["FP32"]
LAYOUT = Layout.of([FP32.numpy], [(1,)], batched=True)
IDLE_NS = 1_000_000
SUM = 'state { input_name: "sum" output_name: "next_sum" data_type: TYPE_FP32 dims: [ 1 ] }'
CONTROLS = """
control_input { name: "start" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } }
control_input { name: "ready" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
"""
BAD = -1.0
"""A value that the model fails on."""


def spec(name: str, datatype: str = "FP32", shape: tuple[Dim, ...] = ("batch", 1)) -> TensorSpec:
    return TensorSpec(name, BY_NAME[datatype], shape)


class Accumulator:
    """sum + x -> y and the next sum, in buffers that every run writes over. Fails on rows that are BAD."""

    signature = Signature((spec("sum"), spec("x")), (spec("y"), spec("next_sum")), {})
    provider = "test"

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self._buffers = {rows: np.empty((rows, 1), np.float32) for rows in range(1, 5)}

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        total, x = inputs
        self.runs.append(len(x))
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        if (x == BAD).any():
            raise RuntimeFailure("no")
        buffer = self._buffers[len(x)]
        np.add(total, x, out=buffer)
        return [buffer.copy(), buffer]

    def close(self) -> None:
        pass


class Recorder:
    """Keeps what it was given; y is the number of the run."""

    provider = "test"

    def __init__(self, *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> None:
        self.signature = Signature((spec("x"), *inputs), (spec("y"), *outputs), {})
        self.given: list[dict[str, Tensor]] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = dict(zip([spec.name for spec in self.signature.inputs], inputs, strict=True))
        self.given.append(given)
        outputs = [np.full((len(inputs[0]), 1), len(self.given), np.float32)]
        return outputs + [self.state(given) for _ in self.signature.outputs[1:]]

    def state(self, given: dict[str, Tensor]) -> Tensor:
        """One element longer than before, all of them x."""
        return np.repeat(given["x"], given["kept"].shape[1] + 1, axis=1)

    def close(self) -> None:
        pass


class Caller:
    def __init__(self, deadline_ns: int | None = None) -> None:
        self.deadline_ns = deadline_ns
        self.request_id = ""
        self.trace = None
        self.gone = False
        self.undeliverable: ServerError | None = None
        self.outcome: float | ServerError | None = None
        self.answered: Callable[[], None] = lambda: None

    def cancelled(self) -> bool:
        return self.gone

    def send(self, form: object, outputs: Sequence[Tensor]) -> ServerError | None:
        assert self.outcome is None, "completed twice"
        self.outcome = self.undeliverable or float(outputs[0][0, 0])
        self.answered()
        return self.undeliverable

    def fail(self, error: ServerError) -> None:
        assert self.outcome is None, "completed twice"
        self.outcome = error


def finish(reply: Reply, outputs: Sequence[Tensor]) -> ServerError | None:
    return reply.send(None, outputs)  # type: ignore[arg-type]


class Bench:
    """A front, its batcher and model, and a clock that stands still."""

    def __init__(
        self,
        model: Accumulator | Recorder | None = None,
        text: str = SUM,
        *,
        max_sequences: int = 100,
        max_size: int = 100,
        max_bytes: int = 10**6,
    ) -> None:
        self.model = model or Accumulator()
        self.now_ns = 0
        message = model_config_pb2.ModelConfig()
        text_format.Parse(f"sequence_batching {{ max_sequence_idle_microseconds: 1000 {text} }}", message)
        declared = read_json(json_format.MessageToJson(message), Path(), "m", "onnxruntime_onnx")
        config = ModelConfig(4, 4, max_size, max_bytes, 0, 1)
        sequences = sequence_model(self.model.signature, declared, config, max_sequences)
        assert sequences is not None
        self.batcher = DynamicBatcher(
            self.model,
            name="test",
            max_batch_size=4,
            instances=1,
            queue=RequestQueue(max_size, max_bytes),
            on_gone=sequence_batcher.gone,
            clock_ns=lambda: self.now_ns,
        )
        self.front = SequenceBatcher(self.batcher, sequences, model="m", clock_ns=lambda: self.now_ns)

    def bring(
        self,
        sequence: int | str,
        value: float,
        *,
        start: bool = False,
        end: bool = False,
        caller: Caller | None = None,
        expires_ns: int | None = None,
        finish: Finish = finish,
        nbytes: int = 0,
        priority: int = 0,
    ) -> Caller:
        caller = caller or Caller()
        array = np.array([[value]], np.float32)
        work = Work([array], 1, LAYOUT, caller, finish, self.now_ns, expires_ns, nbytes, priority)
        self.front.enqueue(work, SequenceStep(sequence, start, end))
        return caller

    def ask(self, sequence: int | str, value: float, *, start: bool = False, end: bool = False) -> object:
        """What a lone request gets."""
        caller = self.bring(sequence, value, start=start, end=end)
        self.run()
        return caller.outcome

    def run(self) -> None:
        self.batcher.run_here()

    @property
    def runs(self) -> list[int]:
        assert isinstance(self.model, Accumulator)
        return self.model.runs


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(*arguments: object, **options: object) -> Bench:
        benches.append(Bench(*arguments, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield build
    for bench in benches:
        assert bench.batcher.close(1.0)


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    return make()


def test_requests_of_one_sequence_run_one_at_a_time_in_order(bench: Bench) -> None:
    callers = [bench.bring(7, value, start=value == 1) for value in (1, 2, 3)]
    bench.run()
    assert [caller.outcome for caller in callers] == [1, 3, 6]
    assert bench.runs == [1, 1, 1]


def test_requests_of_different_sequences_run_together(bench: Bench) -> None:
    callers = [bench.bring(name, value, start=value == 1) for value in (1, 2, 3) for name in (1, "1", 2)]
    bench.run()
    assert [caller.outcome for caller in callers] == [1, 1, 1, 3, 3, 3, 6, 6, 6]
    assert bench.runs == [3, 3, 3]


def test_what_comes_while_the_sequence_runs_waits_for_it(bench: Bench) -> None:
    late: list[Caller] = []
    assert isinstance(bench.model, Accumulator)
    bench.model.meanwhile = lambda: late.append(bench.bring(1, 10))
    assert bench.ask(1, 5, start=True) == 5
    assert late[0].outcome == 15


def test_a_start_begins_again_and_an_end_frees_the_state(bench: Bench) -> None:
    assert bench.ask(1, 5, start=True) == 5
    assert bench.ask(1, 7, start=True) == 7
    assert bench.ask(1, 1, end=True) == 8
    with pytest.raises(InvalidRequest, match="sequence 1 to model 'm' must specify the START flag on the first"):
        bench.ask(1, 1)
    assert bench.ask(1, 2, start=True, end=True) == 2
    assert bench.ask(1, 3, start=True) == 3


def test_a_sequence_that_ends_in_the_line_can_be_started_behind_it(bench: Bench) -> None:
    steps = [(1, True, False), (2, False, True), (3, False, False), (4, True, False), (5, False, False)]
    callers = [bench.bring(1, value, start=start, end=end) for value, start, end in steps]
    bench.run()
    assert [caller.outcome for caller in callers if isinstance(caller.outcome, float)] == [1, 3, 4, 9]
    assert isinstance(callers[2].outcome, InvalidRequest)


def test_the_state_is_no_view_of_what_a_run_gave(bench: Bench) -> None:
    for name in (1, 2):
        bench.bring(name, name, start=True)
    bench.run()
    bench.bring(3, 100, start=True)
    bench.bring(4, 100, start=True)
    bench.run()
    assert [bench.ask(name, 0) for name in (1, 2)] == [1, 2]


def test_sequences_that_idle_are_dropped(bench: Bench) -> None:
    bench.ask(1, 5, start=True)
    bench.now_ns = IDLE_NS
    assert bench.ask(1, 1) == 6, "not for more than the time allowed"
    bench.now_ns = 2 * IDLE_NS
    bench.ask(2, 1, start=True)
    bench.now_ns += 1
    with pytest.raises(
        InvalidRequest, match="sequence 1 of model 'm' was dropped, since it was idle for more than 1000"
    ):
        bench.ask(1, 1)
    assert bench.ask(2, 1) == 2
    assert bench.ask(1, 3, start=True) == 3
    assert bench.ask(1, 3, end=True) == 6
    with pytest.raises(InvalidRequest, match="START flag"):
        bench.ask(1, 1)


def test_a_sequence_with_a_request_here_does_not_idle(bench: Bench) -> None:
    waiting = bench.bring(1, 5, start=True)
    bench.now_ns = 2 * IDLE_NS
    bench.bring(2, 1, start=True)
    bench.run()
    assert waiting.outcome == 5
    bench.now_ns = 3 * IDLE_NS
    assert bench.ask(1, 1) == 6


def test_live_sequences_are_bounded(make: Callable[..., Bench]) -> None:
    bench = make(max_sequences=2)
    bench.ask(1, 1, start=True)
    bench.ask(2, 2, start=True)
    with pytest.raises(TooManySequences, match="model 'm' has 2 live sequences") as caught:
        bench.ask(3, 3, start=True)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert bench.ask(2, 5, start=True) == 5, "a live one may begin again"
    started: list[Caller] = []
    ending = bench.bring(1, 1, end=True)
    ending.answered = lambda: started.append(bench.bring(3, 3, start=True))
    bench.run()
    assert [ending.outcome, started[0].outcome] == [2, 3], "who is told of an end can start another"
    bench.now_ns = IDLE_NS + 1
    for name in (4, 5, 4, 5):
        assert bench.ask(name, name, start=True) == name
    assert len(bench.front._dropped) == 2


def test_the_configuration_bounds_them_too(make: Callable[..., Bench]) -> None:
    bench = make(None, f"{SUM} oldest {{ max_candidate_sequences: 1 }}")
    bench.ask(1, 1, start=True)
    with pytest.raises(TooManySequences):
        bench.ask(2, 1, start=True)


def test_what_does_not_run_leaves_the_state(bench: Bench) -> None:
    bench.ask(1, 5, start=True)
    gone, late, impatient = Caller(), Caller(deadline_ns=1), Caller()
    for caller, expires_ns in ((gone, None), (late, None), (impatient, 1)):
        bench.bring(1, 100, caller=caller, expires_ns=expires_ns, start=True)
    last = bench.bring(1, 1)
    gone.gone = True
    bench.now_ns = 1
    bench.run()
    assert gone.outcome is None
    assert isinstance(late.outcome, DeadlineExceeded)
    assert isinstance(impatient.outcome, QueueTimeout)
    assert last.outcome == 6
    assert bench.runs == [1, 1]


def test_what_follows_a_start_that_did_not_run_has_no_sequence(bench: Bench) -> None:
    first = bench.bring(1, 5, start=True)
    followers = [bench.bring(1, value, start=value == 3) for value in (1, 2, 3, 4)]
    first.gone = True
    bench.run()
    assert [type(caller.outcome) for caller in followers] == [InvalidRequest, InvalidRequest, float, float]
    assert followers[-1].outcome == 7
    alone = bench.bring(2, 5, start=True)
    alone.gone = True
    bench.run()
    with pytest.raises(InvalidRequest, match="START flag"):
        bench.ask(2, 1)


def test_a_run_that_fails_leaves_the_state_and_the_other_sequences_alone(bench: Bench) -> None:
    bench.ask(1, 5, start=True)
    callers = [bench.bring(1, BAD, end=True), bench.bring(2, 1, start=True), bench.bring(1, 1)]
    bench.run()
    assert isinstance(callers[0].outcome, RuntimeFailure)
    assert [caller.outcome for caller in callers[1:]] == [1, 6]


def test_a_request_without_an_answer_leaves_the_state(bench: Bench) -> None:
    bench.ask(1, 5, start=True)

    def refuse(reply: Reply, _: Sequence[Tensor]) -> ServerError | None:
        error = InvalidRequest("no such classes")
        reply.fail(error)
        return error

    def defect(reply: Reply, _: Sequence[Tensor]) -> ServerError | None:
        raise ValueError("defect")

    callers = [bench.bring(1, 100, finish=refuse), bench.bring(1, 100, finish=defect), bench.bring(1, 1)]
    bench.run()
    assert [type(caller.outcome) for caller in callers] == [InvalidRequest, RuntimeFailure, float]
    assert callers[-1].outcome == 6


@pytest.mark.parametrize("end", [False, True])
def test_an_answer_that_cannot_be_delivered_leaves_the_state(bench: Bench, end: bool) -> None:
    bench.ask(1, 5, start=True)
    caller = Caller()
    caller.undeliverable = InvalidRequest("does not fit")
    bench.bring(1, 100, caller=caller, end=end)
    bench.run()
    assert caller.outcome is caller.undeliverable
    assert bench.ask(1, 1) == 6
    failed = bench.batcher.statistics.snapshot().failures
    assert sum(each.times for each in failed.values()) == 1


def test_every_step_is_counted_once_however_it_ends(bench: Bench) -> None:
    first = bench.bring(1, 1, start=True)
    bench.bring(1, 1)
    bench.bring(2, BAD, start=True)
    bench.bring(2, 1)
    gone = bench.bring(3, 1, start=True)
    bench.bring(3, 1)
    gone.gone = True
    assert bench.batcher.pending == 6
    bench.run()
    assert first.outcome == 1
    snapshot = bench.batcher.statistics.snapshot()
    assert snapshot.request.total.times == 2
    assert snapshot.failed.times == 4
    assert bench.batcher.pending == 0


def test_priorities_order_sequences_and_not_the_steps_of_one(make: Callable[..., Bench]) -> None:
    bench = make()
    order: list[str] = []

    def bring(name: str, sequence: int, priority: int, *, start: bool = False) -> None:
        caller = Caller()
        caller.answered = lambda: order.append(name)
        bench.bring(sequence, 1, start=start, priority=priority, caller=caller)

    for sequence in range(1, 6):
        bring(f"usual {sequence}", sequence, 0, start=True)
    bring("urgent step", 1, 1)
    bring("urgent", 9, 1, start=True)
    bench.run()
    assert order == ["urgent", "usual 1", "usual 2", "usual 3", "urgent step", "usual 4", "usual 5"]


def test_what_is_held_back_counts_for_the_limits(make: Callable[..., Bench]) -> None:
    bench = make(max_size=2)
    callers = [bench.bring(1, 1, start=True), bench.bring(1, 1)]
    for name, start in ((1, False), (2, True)):
        with pytest.raises(QueueFull, match="2 requests wait"):
            bench.bring(name, 100, start=start)
    bench.run()
    assert [caller.outcome for caller in callers] == [1, 2]
    with pytest.raises(InvalidRequest):
        bench.ask(2, 1)
    assert bench.ask(1, 1) == 3


def test_bytes_that_are_held_back_count_too_and_have_their_place(make: Callable[..., Bench]) -> None:
    bench = make(max_bytes=10)
    late: list[Caller] = []

    def arrive() -> None:
        late.append(bench.bring(1, 2, nbytes=8))
        late.append(bench.bring(2, 5, start=True, nbytes=2))
        with pytest.raises(QueueFull, match="10 of 10 bytes"):
            bench.bring(3, 5, start=True, nbytes=1)

    assert isinstance(bench.model, Accumulator)
    bench.model.meanwhile = arrive
    bench.bring(1, 1, start=True, nbytes=20)
    bench.run()
    assert [caller.outcome for caller in late] == [3, 5]


def test_closing_finishes_what_was_accepted(bench: Bench) -> None:
    callers = [bench.bring(1, value, start=value == 1) for value in (1, 2, 3)]
    bench.batcher.start()
    assert bench.batcher.close(10.0)
    assert [caller.outcome for caller in callers] == [1, 3, 6]
    with pytest.raises(Closed):
        bench.bring(1, 1)
    with pytest.raises(Closed):
        bench.bring(2, 1, start=True)


def test_closing_gives_up_on_what_does_not_begin_in_time(bench: Bench) -> None:
    late: list[Caller] = []

    def close() -> None:
        late.extend(bench.bring(1, 1) for _ in range(3))
        late.append(bench.bring(2, 1))
        assert not bench.batcher.close(0)

    bench.ask(2, 1, start=True)
    assert isinstance(bench.model, Accumulator)
    bench.model.meanwhile = close
    assert bench.ask(1, 5, start=True) == 5
    assert [type(caller.outcome) for caller in late] == [Draining] * 4
    assert bench.runs == [1, 1]


def test_a_long_line_is_given_up_without_recursion(make: Callable[..., Bench]) -> None:
    bench = make(max_size=5000)
    callers = [bench.bring(1, 1, start=place == 0) for place in range(3000)]
    callers[0].gone = True
    bench.run()
    assert {type(caller.outcome) for caller in callers[1:]} == {InvalidRequest}


def test_what_ends_without_a_run_leaves_its_place(make: Callable[..., Bench]) -> None:
    bench = make(max_size=3)
    callers = [bench.bring(1, 1, start=place == 0) for place in range(3)]
    callers[0].gone = True
    bench.run()
    callers = [bench.bring(2, 1, start=place == 0) for place in range(3)]
    bench.run()
    assert [caller.outcome for caller in callers] == [1, 2, 3]


def test_controls_say_where_in_its_sequence_a_request_is(make: Callable[..., Bench]) -> None:
    model = Recorder(spec("start", "INT32"), spec("end"), spec("ready", "BOOL", ("batch",)), spec("id", "INT32"))
    identity = 'control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT32 } }'
    bench = make(model, CONTROLS + identity)
    assert [spec.name for spec in bench.front.signature.inputs] == ["x"]
    bench.bring(1, 0, start=True)
    bench.bring(2**31 - 1, 0, start=True, end=True)
    bench.run()
    bench.ask(1, 0)
    assert [
        {name: (array.dtype.name, array.shape[1:], array.ravel().tolist()) for name, array in given.items()}
        for given in model.given
    ] == [
        {
            "x": ("float32", (1,), [0, 0]),
            "start": ("int32", (1,), [1, 1]),
            "end": ("float32", (1,), [0, 1]),
            "ready": ("bool", (), [True, True]),
            "id": ("int32", (1,), [1, 2**31 - 1]),
        },
        {
            "x": ("float32", (1,), [0]),
            "start": ("int32", (1,), [0]),
            "end": ("float32", (1,), [0]),
            "ready": ("bool", (), [True]),
            "id": ("int32", (1,), [1]),
        },
    ]
    with pytest.raises(InvalidRequest, match=f"a sequence_id of at most {2**31 - 1}, got {2**31}"):
        bench.ask(2**31, 0, start=True)
    with pytest.raises(InvalidRequest, match="a sequence_id that is a number, got the string 'a'"):
        bench.ask("a", 0, start=True)


def test_an_id_may_be_text(make: Callable[..., Bench]) -> None:
    model = Recorder(TensorSpec("id", BYTES, ("batch", 1)))
    text = 'control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } }'
    bench = make(model, text)
    bench.bring("é", 0, start=True)
    bench.bring("b", 0, start=True)
    bench.run()
    assert model.given[0]["id"].tolist() == [["é".encode()], [b"b"]]
    with pytest.raises(InvalidRequest, match="a sequence_id that is a string, got the number 1"):
        bench.ask(1, 0, start=True)


def test_a_state_may_grow_and_is_batched_with_those_of_its_size(make: Callable[..., Bench]) -> None:
    shape: tuple[Dim, ...] = ("batch", "length")
    model = Recorder(spec("kept", shape=shape), outputs=(spec("grown", shape=shape),))
    state = 'input_name: "kept" output_name: "grown" data_type: TYPE_FP32 dims: [ -1 ]'
    initial = 'initial_state { data_type: TYPE_FP32 dims: [ 0 ] zero_data: true name: "none" }'
    bench = make(model, f"state {{ {state} {initial} }}")
    for name in (1, 2):
        bench.ask(name, 5, start=True)
    bench.ask(1, 6)
    for name in (1, 2, 3):
        bench.bring(name, 9, start=name == 3)
    bench.run()
    assert [given["kept"].tolist() for given in model.given[2:]] == [[[5.0]], [[6.0, 6.0]], [[5.0]], [[]]]


values = st.integers(0, 100).map(float)
steps = st.tuples(values, st.booleans(), st.booleans())


def alone(sequence: list[tuple[float, bool, bool]]) -> list[float | None]:
    """What a sequence gets, step by step; None for what is refused."""
    total: float | None = None
    outcomes: list[float | None] = []
    for value, start, end in sequence:
        if start:
            total = 0.0
        if total is not None:
            total += value
        outcomes.append(total)
        if end:
            total = None
    return outcomes


@given(
    st.lists(st.lists(steps, min_size=1, max_size=6), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
    st.floats(0, 1),
)
def test_any_interleaving_gives_each_sequence_what_it_gets_alone(
    sequences: list[list[tuple[float, bool, bool]]], random: object, eagerness: float
) -> None:
    bench = Bench()
    order = [place for place, sequence in enumerate(sequences) for _ in sequence]
    random.shuffle(order)  # type: ignore[attr-defined]
    left = [iter(sequence) for sequence in sequences]
    got: list[list[object]] = [[] for _ in sequences]
    for place in order:
        value, start, end = next(left[place])
        try:
            got[place].append(bench.bring(place + 1, value, start=start, end=end))
        except InvalidRequest:
            got[place].append(None)
        if random.random() < eagerness:  # type: ignore[attr-defined]
            bench.run()
    bench.run()
    outcomes = [
        [caller.outcome if isinstance(caller, Caller) and isinstance(caller.outcome, float) else None for caller in one]
        for one in got
    ]
    assert outcomes == [alone(sequence) for sequence in sequences]
    assert len(bench.front._live) == sum(
        alone([*sequence, (0.0, False, False)])[-1] is not None for sequence in sequences
    )
    assert bench.batcher.close(1.0)
