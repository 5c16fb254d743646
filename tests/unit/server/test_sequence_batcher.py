"""Sequences: what runs when, and which state it meets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_protocol.datatypes import BYTES
from inferd_protocol.tensors import Tensor
from inferd_server.errors import (
    DeadlineExceeded,
    InvalidRequest,
    QueueTimeout,
    RuntimeFailure,
    ServerError,
)
from inferd_server.request import Reply
from inferd_server.runtime.backend import Dim, TensorSpec
from support.sequences import BAD, CONTROLS, Accumulator, Bench, Caller, Recorder, spec


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


def test_controls_say_where_in_its_sequence_a_request_is(make_bench: Callable[..., Bench]) -> None:
    model = Recorder(spec("start", "INT32"), spec("end"), spec("ready", "BOOL", ("batch",)), spec("id", "INT32"))
    identity = 'control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT32 } }'
    bench = make_bench(model, CONTROLS + identity)
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


def test_an_id_may_be_text(make_bench: Callable[..., Bench]) -> None:
    model = Recorder(TensorSpec("id", BYTES, ("batch", 1)))
    text = 'control_input { name: "id" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } }'
    bench = make_bench(model, text)
    bench.bring("é", 0, start=True)
    bench.bring("b", 0, start=True)
    bench.run()
    assert model.given[0]["id"].tolist() == [["é".encode()], [b"b"]]
    with pytest.raises(InvalidRequest, match="a sequence_id that is a string, got the number 1"):
        bench.ask(1, 0, start=True)


def test_a_state_may_grow_and_is_batched_with_those_of_its_size(make_bench: Callable[..., Bench]) -> None:
    shape: tuple[Dim, ...] = ("batch", "length")
    model = Recorder(spec("kept", shape=shape), outputs=(spec("grown", shape=shape),))
    state = 'input_name: "kept" output_name: "grown" data_type: TYPE_FP32 dims: [ -1 ]'
    initial = 'initial_state { data_type: TYPE_FP32 dims: [ 0 ] zero_data: true name: "none" }'
    bench = make_bench(model, f"state {{ {state} {initial} }}")
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
