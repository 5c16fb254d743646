"""The batcher with a model whose runs the test lets begin and end: no timing, only order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_server.errors import DeadlineExceeded, Draining, InvalidRequest, QueueTimeout, RuntimeFailure, ServerError
from inferd_server.runtime.backend import Signature, TensorSpec
from inferd_server.scheduling.dynamic_batcher import DynamicBatcher
from inferd_server.scheduling.request_queue import RequestQueue
from inferd_server.scheduling.scheduler import Closed
from inferd_server.scheduling.work import Layout, Work

SECONDS = 30.0
FP32 = BY_NAME["FP32"]
LAYOUT = Layout.of([FP32.numpy], [(1,)], batched=True)


def finish(reply: Caller, outputs: Sequence[np.ndarray]) -> None:
    reply.future.set_result(outputs[0][:, 0].tolist())


class GatedModel:
    """Doubles its rows. Each run waits for the gate; `runs` are the row counts so far."""

    signature = Signature((TensorSpec("x", FP32, ("batch", 1)),), (TensorSpec("y", FP32, ("batch", 1)),), {})
    provider = "test"

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray] = lambda x: x * 2) -> None:
        self.gate = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.runs: list[int] = []
        self._answer = answer

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        self.runs.append(len(inputs[0]))
        self.began.release()
        assert self.gate.acquire(timeout=SECONDS)
        return [self._answer(inputs[0])]

    def close(self) -> None:
        pass


class Caller:
    def __init__(self, deadline_ns: int | None = None) -> None:
        self.deadline_ns = deadline_ns
        self.gone = False
        self.future: Future[list[float]] = Future()

    def cancelled(self) -> bool:
        return self.gone

    def fail(self, error: ServerError) -> None:
        self.future.set_exception(error)

    def result(self) -> list[float]:
        return self.future.result(SECONDS)


class Bench:
    """A batcher, its model, and a clock that stands still."""

    def __init__(
        self, model: GatedModel, instances: int = 1, max_size: int = 100, delay_ns: int = 0, preferred_rows: int = 0
    ) -> None:
        self.model = model
        self.now_ns = 0
        self.batcher = DynamicBatcher(
            model,
            name="test",
            max_batch_size=4,
            instances=instances,
            queue=RequestQueue(max_size, 10**6),
            max_queue_delay_ns=delay_ns,
            preferred_rows=preferred_rows,
            clock_ns=lambda: self.now_ns,
        )

    def ask(self, *values: float, deadline_ns: int | None = None, expires_ns: int | None = None) -> Caller:
        caller = self.bring(*values, deadline_ns=deadline_ns, expires_ns=expires_ns)
        self.batcher.start()
        return caller

    def bring(self, *values: float, deadline_ns: int | None = None, expires_ns: int | None = None) -> Caller:
        caller = Caller(deadline_ns)
        array = np.array(values, np.float32).reshape(-1, 1)
        self.batcher.enqueue(Work([array], len(values), LAYOUT, caller, finish, self.now_ns, expires_ns))  # type: ignore[arg-type]
        return caller

    def busy(self) -> Caller:
        """A request that runs, and holds the instance until the gate opens."""
        caller = self.ask(100.0)
        assert self.model.began.acquire(timeout=SECONDS)
        return caller

    def open(self, runs: int = 100) -> None:
        self.model.gate.release(runs)


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(model: GatedModel | None = None, **options: int) -> Bench:
        benches.append(Bench(model or GatedModel(), **options))
        return benches[-1]

    yield build
    for bench in benches:
        bench.open()
        bench.batcher.close(SECONDS)


def test_a_lone_request_runs_at_once(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.open()
    assert bench.ask(1, 2).result() == [2, 4]
    assert bench.model.runs == [2]


def test_requests_that_came_during_a_run_are_one_batch(make: Callable[..., Bench]) -> None:
    bench = make()
    first = bench.busy()
    others = [bench.ask(1), bench.ask(2, 3), bench.ask(4)]
    bench.open()
    assert first.result() == [200]
    assert [caller.result() for caller in others] == [[2], [4, 6], [8]]
    assert bench.model.runs == [1, 4]


def test_a_large_request_is_split_and_put_together(make: Callable[..., Bench]) -> None:
    bench = make(instances=2)
    bench.open()
    assert bench.ask(*range(11)).result() == [2 * value for value in range(11)]
    assert sorted(bench.model.runs) == [3, 4, 4]


def test_two_instances_run_at_the_same_time(make: Callable[..., Bench]) -> None:
    bench = make(instances=2)
    one, other = bench.busy(), bench.busy()
    bench.open()
    assert one.result() == other.result() == [200]


def test_expired_and_cancelled_requests_are_not_run(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.busy()
    late, waited, gone, alive = bench.ask(1, deadline_ns=5), bench.ask(2, expires_ns=5), bench.ask(3), bench.ask(4)
    gone.gone = True
    bench.now_ns = 5
    bench.open()
    assert alive.result() == [8]
    with pytest.raises(DeadlineExceeded):
        late.result()
    with pytest.raises(QueueTimeout):
        waited.result()
    assert bench.model.runs == [1, 1]
    assert not gone.future.done()


def _refuse_threes(x: np.ndarray) -> np.ndarray:
    if (x == 3).any():
        raise InvalidRequest("no threes")
    return x * 2


def test_one_callers_bad_input_fails_that_caller_alone(make: Callable[..., Bench]) -> None:
    bench = make(GatedModel(_refuse_threes))
    bench.busy()
    callers = [bench.ask(1), bench.ask(3), bench.ask(2)]
    bench.open()
    assert callers[0].result() == [2]
    assert callers[2].result() == [4]
    with pytest.raises(InvalidRequest, match="no threes"):
        callers[1].result()


def test_a_failed_part_fails_a_split_request_once_and_the_next_request_is_served(make: Callable[..., Bench]) -> None:
    bench = make(GatedModel(_refuse_threes))
    bench.open()
    with pytest.raises(InvalidRequest):
        bench.ask(*range(11)).result()
    assert bench.ask(1).result() == [2]


def test_a_defect_of_the_model_is_answered_and_survived(make: Callable[..., Bench]) -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        if (x == 3).any():
            raise ZeroDivisionError("oops")
        return x * 2

    bench = make(GatedModel(broken))
    bench.open()
    with pytest.raises(RuntimeFailure, match="oops"):
        bench.ask(3).result()
    assert bench.ask(1).result() == [2]


def test_an_answer_that_fails_takes_neither_the_batch_nor_the_instance_along(make: Callable[..., Bench]) -> None:
    bench = make()
    running = bench.busy()
    spoilt, good = bench.ask(1), bench.ask(2)
    spoilt.future = None  # type: ignore[assignment]
    failed: Future[ServerError] = Future()
    spoilt.fail = failed.set_result  # type: ignore[method-assign]
    bench.open()
    assert [running.result(), good.result()] == [[200], [4]]
    assert isinstance(failed.result(SECONDS), RuntimeFailure)
    assert bench.ask(3).result() == [6]


def test_outputs_without_the_batch_axis_are_the_models_fault(make: Callable[..., Bench]) -> None:
    bench = make(GatedModel(lambda x: x[:1]))
    bench.open()
    with pytest.raises(RuntimeFailure, match=r"'y' has shape \[1, 1\] for a batch of 2 rows"):
        bench.ask(1, 2).result()


def test_the_thread_that_brings_a_request_can_run_it(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.open()
    caller = bench.bring(1)
    assert bench.batcher.can_run_here
    bench.batcher.run_here()
    assert caller.future.done()
    assert caller.result() == [2]


def test_a_busy_instance_takes_what_another_thread_brings(make: Callable[..., Bench]) -> None:
    bench = make()
    running = bench.busy()
    caller = bench.bring(1)
    assert not bench.batcher.can_run_here
    bench.batcher.run_here()
    assert not caller.future.done()
    bench.open()
    assert [running.result(), caller.result()] == [[200], [2]]


def test_two_instances_share_what_was_brought_at_once(make: Callable[..., Bench]) -> None:
    bench = make(instances=2)
    callers = [bench.bring(*range(4)) for _ in range(2)]
    bench.batcher.start()
    for _ in callers:
        assert bench.model.began.acquire(timeout=SECONDS), "both run before either is let go"
    bench.open()
    assert [caller.result() for caller in callers] == [[0, 2, 4, 6]] * 2


def test_a_batch_waits_for_more_rows_where_the_model_asks_for_it(make: Callable[..., Bench]) -> None:
    bench = make(delay_ns=10**15)
    bench.open()
    callers = [bench.ask(1), bench.ask(2, 3), bench.ask(4)]
    assert [caller.result() for caller in callers] == [[2], [4, 6], [8]]
    assert bench.model.runs == [4], "one batch, as soon as it is full"


def test_a_batch_of_a_preferred_size_waits_no_longer(make: Callable[..., Bench]) -> None:
    bench = make(delay_ns=10**15, preferred_rows=2)
    bench.open()
    one = bench.ask(1)
    assert not one.future.done()
    other = bench.ask(2)
    assert [one.result(), other.result()] == [[2], [4]]
    assert bench.model.runs == [2]
    assert bench.ask(1, 2, 3).result() == [2, 4, 6], "larger ones are formed too"


def test_a_batch_that_stays_small_runs_when_its_delay_is_over(make: Callable[..., Bench]) -> None:
    bench = make(delay_ns=1000)
    bench.open()
    bench.now_ns = 1000
    caller = bench.ask(1)
    bench.now_ns = 2000
    bench.batcher.start()
    assert caller.result() == [2]


def test_closing_does_not_wait_for_the_delay(make: Callable[..., Bench]) -> None:
    bench = make(delay_ns=10**15)
    bench.open()
    caller = bench.ask(1)
    bench.batcher.close(SECONDS)
    assert caller.result() == [2]


def test_closing_finishes_what_was_accepted_and_refuses_more(make: Callable[..., Bench]) -> None:
    bench = make()
    callers = [bench.busy(), bench.ask(1), bench.ask(2)]
    bench.open()
    bench.batcher.close(SECONDS)
    assert [caller.result() for caller in callers] == [[200], [2], [4]]
    with pytest.raises(Closed):
        bench.ask(1)


def test_closing_gives_up_on_what_does_not_begin_in_time(make: Callable[..., Bench]) -> None:
    bench = make()
    running, waiting = bench.busy(), bench.ask(1)
    bench.batcher.close(timeout=0)
    with pytest.raises(Draining):
        waiting.result()
    bench.open()
    assert running.result() == [200]


def failures(bench: Bench) -> dict[str, int]:
    return {reason: each.times for reason, each in bench.batcher.statistics.snapshot().failures.items()}


def test_statistics_count_requests_batches_and_their_time(make: Callable[..., Bench]) -> None:
    bench = make()
    first = bench.busy()
    others = [bench.ask(1), bench.ask(2, 3)]
    bench.now_ns = 50
    bench.open()
    assert [caller.result() for caller in [first, *others]] == [[200], [2], [4, 6]]
    snapshot = bench.batcher.statistics.snapshot()
    assert {rows: each.runs for rows, each in snapshot.batches.items()} == {1: 1, 3: 1}
    assert snapshot.request.total == (3, 3 * 50)
    assert snapshot.queue.total == (3, 2 * 50)
    assert snapshot.compute_infer.total == (3, 50)
    assert snapshot.failures == {}


def test_a_split_request_counts_once_whichever_instances_ran_it(make: Callable[..., Bench]) -> None:
    bench = make(instances=2)
    bench.open()
    for _ in range(20):
        bench.ask(*range(11)).result()
    # All idle: what the last answer's instance still had to count is counted.
    assert bench.batcher.close(SECONDS)
    snapshot = bench.batcher.statistics.snapshot()
    assert (snapshot.rows, snapshot.executions) == (20 * 11, 20 * 3)
    assert {each.total.times for each in (snapshot.request, snapshot.queue, snapshot.compute_output)} == {20}


def test_failures_are_counted_by_reason_and_once(make: Callable[..., Bench]) -> None:
    bench = make(GatedModel(_refuse_threes))
    bench.busy()
    late, waited, gone = bench.ask(1, deadline_ns=5), bench.ask(2, expires_ns=5), bench.ask(4)
    gone_late, bad = bench.ask(5, deadline_ns=5), bench.ask(*range(11))
    gone.gone = gone_late.gone = True
    bench.now_ns = 5
    bench.open()
    for caller in (late, waited, bad):
        with pytest.raises(ServerError):
            caller.result()
    assert bench.ask(1).result() == [2]
    assert failures(bench) == {"cancelled": 1, "deadline": 2, "invalid": 1, "queue_timeout": 1}
    assert bench.batcher.statistics.snapshot().request.total.times == 2


def test_what_is_given_up_at_the_end_is_counted(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.busy()
    left = bench.ask(1)
    assert not bench.batcher.close(0)
    with pytest.raises(Draining):
        left.result()
    assert failures(bench) == {"draining": 1}


def test_an_answer_that_failed_is_no_success(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.busy()
    caller = Caller()
    error = InvalidRequest("no such answer")

    def refuse(reply: Caller, outputs: Sequence[np.ndarray]) -> ServerError:
        reply.fail(error)
        return error

    array = np.ones((1, 1), np.float32)
    bench.batcher.enqueue(Work([array], 1, LAYOUT, caller, refuse))  # type: ignore[arg-type]
    other = bench.ask(2)
    bench.open()
    assert other.result() == [4]
    assert failures(bench) == {"invalid": 1}
    assert bench.batcher.statistics.snapshot().request.total.times == 2
