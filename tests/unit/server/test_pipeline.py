"""The pipeline over real batchers, whose models' runs the test lets begin and end: no timing, only order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_server.errors import (
    DeadlineExceeded,
    Draining,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    QueueTimeout,
    RuntimeFailure,
    ServerError,
)
from inferd_server.observability.statistics import Stamps
from inferd_server.request import AnswerForm
from inferd_server.runtime.backend import Signature, TensorSpec
from inferd_server.scheduling.dynamic_batcher import DynamicBatcher
from inferd_server.scheduling.graph import BoundStep, Graph, Node
from inferd_server.scheduling.pipeline import Pipeline
from inferd_server.scheduling.request_queue import RequestQueue
from inferd_server.scheduling.scheduler import Closed, Scheduler
from inferd_server.scheduling.work import Layout, Work
from support.waiting import until

SECONDS = 30.0
FP32 = BY_NAME["FP32"]
LAYOUT = Layout.of([FP32.numpy], [(1,)], batched=True)
Function = Callable[..., np.ndarray]


class Model:
    """Each run waits for the gate, unless it is `open`; `runs` are the row counts so far."""

    provider = "test"

    def __init__(self, inputs: int, function: Function, gated: bool) -> None:
        specs = tuple(TensorSpec(f"x{number}", FP32, ("batch", 1)) for number in range(inputs))
        self.signature = Signature(specs, (TensorSpec("y", FP32, ("batch", None)),), {})
        self.function = function
        self.gate = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.runs: list[int] = []
        self.gated = gated

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.runs.append(len(inputs[0]))
        self.began.release()
        if self.gated:
            assert self.gate.acquire(timeout=SECONDS)
        return [self.function(*inputs)]

    def wait(self) -> None:
        """Until a run has begun."""
        assert self.began.acquire(timeout=SECONDS)

    def close(self) -> None:
        pass


class Caller:
    request_id = "r"
    trace = None

    def __init__(self, deadline_ns: int | None = None) -> None:
        self.deadline_ns = deadline_ns
        self.gone = False
        self.future: Future[list[float]] = Future()

    def cancelled(self) -> bool:
        return self.gone

    def send(self, form: AnswerForm, outputs: Sequence[np.ndarray]) -> None:
        raise AssertionError("a plan's own `finish` answers")

    def fail(self, error: ServerError) -> None:
        self.future.set_exception(error)

    def result(self) -> list[float]:
        return self.future.result(SECONDS)

    def error(self) -> BaseException | None:
        return self.future.exception(SECONDS)


def finish(reply: object, outputs: Sequence[np.ndarray]) -> None:
    assert isinstance(reply, Caller)
    reply.future.set_result(outputs[0][:, 0].tolist())


class Observed:
    """What a pipeline's observer was told, in order."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, int, str | None]] = []

    def answered(self, works: Sequence[Work], stamps: Stamps) -> None:
        self.ended += [(work.reply.request_id, work.rows, None) for work in works]

    def failed(self, work: Work, error: ServerError | None, ns: int) -> None:
        self.ended.append((work.reply.request_id, work.rows, type(error).__name__))


class Bench:
    """x -> first: x + 1 -> left: doubled, right: squared -> join: the sum of both."""

    def __init__(self, *gated: str, short: str = "", functions: Mapping[str, Function] | None = None) -> None:
        self.now_ns = 0
        every: dict[str, Function] = {
            "first": lambda x: x + 1,
            "left": lambda x: x * 2,
            "right": lambda x: x * x,
            "join": lambda x, y: x + y,
        } | dict(functions or {})
        self.models = {name: Model(2 if name == "join" else 1, every[name], name in gated) for name in every}
        self.batchers = {name: self.batcher(name, 1 if name == short else 100) for name in every}
        nodes = (("first", (0,), 1), ("left", (1,), 2), ("right", (1,), 3), ("join", (2, 3), 4))
        self.graph = Graph(
            ("x", "t", "l", "r", "y"),
            (4,),
            tuple(Node(name, frozenset(taken), frozenset({made})) for name, taken, made in nodes),
            1,
        )
        self.bound: dict[int, BoundStep] = {}
        for number, (name, taken, made) in enumerate(nodes):
            self.bind(number, name, taken, made)
        self.observed = Observed()
        self.pipeline = Pipeline(self.graph, self.find, lambda: self.now_ns, self.observed)

    def batcher(self, name: str, max_size: int = 100) -> DynamicBatcher:
        queue = RequestQueue(max_size, 10**6)
        model = self.models[name]
        return DynamicBatcher(
            model, name=name, max_batch_size=8, instances=1, queue=queue, clock_ns=lambda: self.now_ns
        )

    def bind(self, number: int, name: str, taken: tuple[int, ...], made: int, to: Scheduler | None = None) -> None:
        specs = self.models[name].signature.inputs
        answer = AnswerForm(name, "1", (("y", FP32),))
        scheduler = to or self.batchers[name]
        self.bound[number] = BoundStep(name, scheduler, True, specs, taken, ((0, made),), answer)

    def find(self, number: int) -> BoundStep:
        if number not in self.bound:
            raise ModelNotReady("e", None, "a step is away")
        return self.bound[number]

    def bring(self, *values: float, caller: Caller | None = None, expires_ns: int | None = None) -> Caller:
        caller = caller or Caller()
        array = np.array(values, np.float32).reshape(-1, 1)
        self.pipeline.enqueue(Work([array.data.cast("B")], len(values), LAYOUT, caller, finish, 0, expires_ns))
        return caller

    def ask(self, *values: float, caller: Caller | None = None, expires_ns: int | None = None) -> Caller:
        asked = self.bring(*values, caller=caller, expires_ns=expires_ns)
        self.pipeline.start()
        return asked

    def open(self, *names: str, runs: int = 100) -> None:
        for name in names:
            self.models[name].gate.release(runs)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(*gated: str, **options: object) -> Bench:
        benches.append(Bench(*gated, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield build
    for bench in benches:
        bench.open(*bench.models)
        for batcher in bench.batchers.values():
            assert batcher.close(SECONDS)
        assert bench.pipeline.close(0)
        assert not bench.pipeline._runs, "a request was not let go of"


def expected(*values: float) -> list[float]:
    return [2 * (value + 1) + (value + 1) ** 2 for value in values]


def test_steps_follow_each_other_and_long_requests_are_split(make: Callable[..., Bench]) -> None:
    bench = make()
    assert bench.ask(1, 2).result() == expected(1, 2)
    assert bench.ask(*range(21)).result() == expected(*range(21))
    assert sorted(bench.models["join"].runs) == [2, 5, 8, 8]


def test_the_thread_that_brings_a_request_can_run_its_first_step(make: Callable[..., Bench]) -> None:
    bench = make()
    caller = bench.bring(3)
    assert bench.pipeline.can_run_here
    bench.pipeline.run_here()
    assert bench.models["first"].runs == [1]
    assert caller.result() == expected(3)
    assert not bench.pipeline.can_run_here, "nothing is left to be started"


def test_requests_are_counted_once_each_and_told_of(make: Callable[..., Bench]) -> None:
    bench = make(functions={"left": lambda x: x * 2 if x[0, 0] < 50 else x[:, :0]})
    assert bench.ask(1, 2).result() == expected(1, 2)
    assert isinstance(bench.ask(60).error(), InvalidRequest)
    bench.now_ns = 5_000
    assert bench.ask(3).result() == expected(3)
    counted = bench.pipeline.statistics.snapshot()
    assert (counted.rows, counted.executions, counted.request.total) == (3, 2, (2, 5_000))
    assert counted.failures == {"invalid": (1, 0)}
    assert bench.pipeline.pending == 0
    until(lambda: len(bench.observed.ended) == 3)
    assert bench.observed.ended == [("r", 2, None), ("r", 1, "InvalidRequest"), ("r", 1, None)]
    assert bench.batchers["left"].statistics.snapshot().rows == 4


def test_a_caller_that_has_gone_is_counted(make: Callable[..., Bench]) -> None:
    bench = make("first")
    running = bench.ask(1)
    bench.models["first"].wait()
    gone, late = bench.ask(2), bench.ask(3, caller=Caller(deadline_ns=10))
    assert bench.pipeline.pending == 3
    bench.now_ns, gone.gone, late.gone = 11, True, True
    bench.open("first")
    assert running.result() == expected(1)
    until(lambda: bench.pipeline.pending == 0 and len(bench.observed.ended) == 3)
    assert bench.pipeline.statistics.snapshot().failures == {"cancelled": (1, 11), "deadline": (1, 11)}


def test_steps_take_the_priority_of_their_request(make: Callable[..., Bench]) -> None:
    bench = make("left")
    bench.ask(0)
    bench.models["left"].wait()
    order: list[float] = []

    def note(reply: object, outputs: Sequence[np.ndarray]) -> None:
        order.append(float(outputs[0][0, 0]))
        finish(reply, outputs)

    callers = []
    for value, priority in ((1, 0), (2, 3), (3, 1)):
        callers.append(Caller())
        contents = [np.full((8, 1), value, np.float32)]
        bench.pipeline.enqueue(Work(contents, 8, LAYOUT, callers[-1], note, priority=priority))
        bench.pipeline.start()
    until(lambda: len(bench.batchers["left"]._queue) == 3 and sum(bench.models["right"].runs) == 25)
    bench.open("left")
    for caller in callers:
        caller.result()
    assert order == [*expected(3), *expected(2), *expected(1)]


def test_a_step_waits_no_longer_than_its_model_allows() -> None:
    bound = BoundStep("s", None, True, (), (), (), AnswerForm("m", "1", ()), timeout_ns=10)  # type: ignore[arg-type]
    assert [bound.expires_ns(5, given) for given in (None, 7, 30)] == [15, 7, 15]


def test_steps_that_do_not_need_each_other_run_at_once(make: Callable[..., Bench]) -> None:
    bench = make("left", "right")
    caller = bench.ask(1)
    bench.models["left"].wait()
    bench.models["right"].wait()
    bench.open("left", "right")
    assert caller.result() == expected(1)


def test_steps_share_batches_with_other_requests(make: Callable[..., Bench]) -> None:
    bench = make("left")
    callers = [bench.ask(0)]
    bench.models["left"].wait()
    callers += [bench.ask(1), bench.ask(2, 3)]
    direct = Caller()
    until(lambda: len(bench.batchers["left"]._queue) == 2)
    bench.batchers["left"].enqueue(Work([np.full((1, 1), 50, np.float32)], 1, LAYOUT, direct, finish))
    bench.open("left")
    assert [caller.result() for caller in callers] == [expected(0), expected(1), expected(2, 3)]
    assert direct.result() == [100]
    assert bench.models["left"].runs == [1, 4]


def test_the_first_failure_ends_the_request(make: Callable[..., Bench]) -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        bench.models["left"].wait()
        raise InvalidRequest("it cannot be squared")

    bench = make("left", functions={"right": broken})
    caller = bench.ask(1)
    assert str(caller.error()) == "right: it cannot be squared"
    assert isinstance(caller.error(), InvalidRequest)
    bench.open("left")
    assert str(bench.ask(2).error()) == "right: it cannot be squared"
    assert bench.batchers["left"].close(SECONDS)
    assert bench.models["join"].runs == [], "what was left of the requests led nowhere"


def test_a_defect_fails_the_request(make: Callable[..., Bench]) -> None:
    bench = make(functions={"left": lambda x: x / "2"})  # type: ignore[operator]
    error = bench.ask(1).error()
    assert isinstance(error, RuntimeFailure)
    assert str(error).startswith("left: the model failed to run: ")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.repeat(x, 2, axis=1), r"join: input 'x0' is expected to have shape \[-1, 1\], got \[1, 2\]"),
        (lambda x: x.astype(np.float64), "join: input 'x0' is expected to be FP32, got float64"),
    ],
)
def test_what_the_next_step_cannot_take_fails_the_request(
    make: Callable[..., Bench], answer: Function, message: str
) -> None:
    with pytest.raises(ServerError, match=message):
        make(functions={"left": answer}).ask(1).result()


def test_a_full_queue_refuses_at_any_step(make: Callable[..., Bench]) -> None:
    bench = make("first", short="first")
    running = bench.ask(1)
    bench.models["first"].wait()
    waiting = bench.ask(2)
    with pytest.raises(QueueFull, match="first: the queue is full"):
        bench.bring(3)
    bench.open("first")
    assert (running.result(), waiting.result()) == (expected(1), expected(2))
    later = make("join", short="join")
    callers = [later.ask(1)]
    later.models["join"].wait()
    callers.append(later.ask(2))
    until(lambda: len(later.batchers["join"]._queue) == 1)
    callers.append(later.ask(3))
    refused = callers[2].error()
    assert isinstance(refused, QueueFull)
    assert str(refused).startswith("join: the queue is full")
    later.open("join")
    assert [caller.result() for caller in callers[:2]] == [expected(1), expected(2)]


def test_limits_hold_at_every_step(make: Callable[..., Bench]) -> None:
    bench = make("left")
    bench.ask(1)
    bench.models["left"].wait()
    late, expired = bench.ask(2, caller=Caller(deadline_ns=10)), bench.ask(3, expires_ns=10)
    gone = bench.ask(4)
    until(lambda: len(bench.batchers["left"]._queue) == 3 and sum(bench.models["right"].runs) == 4)
    bench.now_ns, gone.gone = 11, True
    bench.open("left")
    assert isinstance(late.error(), DeadlineExceeded)
    assert isinstance(expired.error(), QueueTimeout)
    assert str(expired.error()).startswith("left: the request waited")
    assert bench.ask(5).result() == expected(5)
    assert not gone.future.done()


def test_nothing_is_begun_that_cannot_be_ended(make: Callable[..., Bench]) -> None:
    bench = make()
    last = bench.bound.pop(3)
    with pytest.raises(ModelNotReady, match="a step is away"):
        bench.bring(1)
    assert bench.models["first"].runs == []
    bench.bound[3] = last
    assert bench.ask(1).result() == expected(1)


def test_a_step_follows_the_replacement_of_its_model(make: Callable[..., Bench]) -> None:
    bench = make("first")
    caller = bench.ask(1)
    bench.models["first"].wait()
    bench.batchers["left"].close(SECONDS)
    bench.batchers["left"] = bench.batcher("left")
    bench.bind(1, "left", (1,), 2)
    bench.open("first")
    assert caller.result() == expected(1)
    bench.batchers["right"].close(SECONDS)
    error = bench.ask(2).error()
    assert isinstance(error, Draining)
    assert str(error).startswith("right: ")


def test_closing_waits_for_what_was_accepted(make: Callable[..., Bench]) -> None:
    bench = make("join")
    caller = bench.ask(1)
    bench.models["join"].wait()
    closing = threading.Thread(target=bench.pipeline.close, args=(SECONDS,))
    closing.start()
    until(lambda: bench.pipeline._closed)
    with pytest.raises(Closed):
        bench.bring(2)
    assert closing.is_alive()
    bench.open("join")
    closing.join(SECONDS)
    assert caller.result() == expected(1)


def test_what_does_not_end_in_time_is_failed(make: Callable[..., Bench]) -> None:
    bench = make("join")
    caller = bench.ask(1)
    bench.models["join"].wait()
    assert bench.pipeline.close(0)
    assert isinstance(caller.error(), Draining)


def test_an_answer_that_cannot_be_made_fails(make: Callable[..., Bench]) -> None:
    bench = make()
    caller = Caller()

    def broken(reply: object, outputs: object) -> None:
        raise TypeError("no answer")

    array = np.ones((1, 1), np.float32)
    bench.pipeline.enqueue(Work([array], 1, LAYOUT, caller, broken))
    bench.pipeline.start()
    assert str(caller.error()) == "the answer could not be made: no answer"


def test_a_caller_is_told_once_where_two_first_steps_fail(make: Callable[..., Bench]) -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        raise InvalidRequest("no")

    bench = make(functions={"left": broken})

    class Refusing:
        """Refuses a step once the other one has failed."""

        def enqueue(self, work: Work) -> None:
            bench.batchers["left"].start()
            assert caller.error() is not None
            raise QueueFull("none")

    caller = Caller()
    bench.graph = Graph(
        ("x", "l", "r", "y"),
        (3,),
        tuple(
            Node(name, frozenset(taken), frozenset({made}))
            for name, taken, made in (("left", (0,), 1), ("right", (0,), 2), ("join", (1, 2), 3))
        ),
        1,
    )
    bench.bind(0, "left", (0,), 1)
    bench.bind(1, "right", (0,), 2, to=Refusing())  # type: ignore[arg-type]
    bench.bind(2, "join", (1, 2), 3)
    bench.pipeline = Pipeline(bench.graph, bench.find)
    bench.bring(1, caller=caller)
    assert str(caller.error()) == "left: no"
