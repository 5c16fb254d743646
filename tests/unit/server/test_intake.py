"""How the native front's calls are taken in, with a front that the test holds in its hands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferd_protocol.reasons import REASON_KEY
from inferd_server.errors import ServerError
from inferd_server.frontend.call import Call
from inferd_server.frontend.native_front import _Intake
from pygrpc_native import EVENT_CALL, EVENT_CANCEL

LIMIT = 100
SECONDS = 1_000_000_000


class Front:
    """Hands out the events it was given, then is closed; remembers what it was told."""

    def __init__(self, *batches: list[Any]) -> None:
        self.batches = list(batches)
        self.answers: dict[int, bytes] = {}
        self.failures: dict[int, tuple[int, str, dict[str, str]]] = {}

    def recv_batch_details(self, _: int) -> list[Any] | None:
        return self.batches.pop(0) if self.batches else None

    def respond(self, call_id: int, message: bytes) -> bool:
        self.answers[call_id] = message
        return True

    def fail(self, call_id: int, code: int, message: str, metadata: Sequence[tuple[str, str]]) -> bool:
        self.failures[call_id] = code, message, dict(metadata)
        return True


class Batcher:
    """Idle or not; counts how it was told to run."""

    def __init__(self, *, idle: bool) -> None:
        self.can_run_here = idle
        self.started = 0
        self.run = 0

    def start(self) -> None:
        self.started += 1

    def run_here(self) -> None:
        self.run += 1


class Endpoint:
    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.calls: dict[bytes, Call] = {}

    def accept(self, message: bytes, call: Call, now_ns: int) -> Batcher:
        self.calls[message] = call
        self.now_ns = now_ns
        return self.batcher

    def refuse(self, error: ServerError, message: bytes, call: Call, now_ns: int) -> None:
        call.fail(error)


def call(call_id: int, message: bytes = b"m", remaining: float | None = None) -> tuple[Any, ...]:
    return EVENT_CALL, call_id, 0, message, "peer", ((), "peer", remaining)


def cancel(call_id: int) -> tuple[Any, ...]:
    return EVENT_CANCEL, call_id, 0, None, None, None


def intake(*batches: list[Any], idle: bool = False) -> tuple[_Intake, Front, Endpoint]:
    front, endpoint = Front(*batches), Endpoint(Batcher(idle=idle))
    return _Intake(front, endpoint, LIMIT), front, endpoint  # type: ignore[arg-type]


def test_calls_get_their_deadlines_and_their_answers() -> None:
    taken, front, endpoint = intake([call(1, b"a", remaining=2.0), call(2, b"b")])
    taken._receive()
    deadline = endpoint.calls[b"a"].deadline_ns
    assert deadline is not None
    assert deadline - endpoint.now_ns == 2 * SECONDS
    assert endpoint.calls[b"b"].deadline_ns is None
    endpoint.calls[b"a"].respond(b"answer")
    assert front.answers == {1: b"answer"}


def test_a_cancelled_call_is_known_to_be_gone() -> None:
    taken, _, endpoint = intake([call(1, b"a"), call(2, b"b")], [cancel(1), cancel(7)])
    taken._receive()
    assert endpoint.calls[b"a"].cancelled()
    assert not endpoint.calls[b"b"].cancelled()


def test_messages_over_the_limit_are_refused_in_both_directions() -> None:
    taken, front, endpoint = intake([call(1, bytes(LIMIT + 1)), call(2, bytes(LIMIT))])
    taken._receive()
    endpoint.calls[bytes(LIMIT)].respond(bytes(LIMIT + 1))
    expected = "has 101 bytes, expected at most 100: send fewer rows in one call"
    assert front.failures == {1: (8, f"the request {expected}", {}), 2: (8, f"the answer {expected}", {})}
    assert front.answers == {}


def test_a_server_that_stops_says_so_to_new_calls_and_waits_for_the_old_ones() -> None:
    taken, front, endpoint = intake([call(1, b"a")], [call(2, b"b")])
    taken._accept(front.batches.pop(0))
    taken.refuse()
    assert not taken._none_left.is_set()
    taken._receive()
    code, _, metadata = front.failures[2]
    assert (code, metadata) == (14, {REASON_KEY: "draining"})
    assert not taken._none_left.is_set()
    endpoint.calls[b"a"].respond(b"")
    assert taken._none_left.is_set()


def test_the_receiving_thread_runs_what_finds_its_model_idle() -> None:
    taken, _, endpoint = intake([call(1), call(2)], [call(3)], idle=True)
    taken._receive()
    assert (endpoint.batcher.run, endpoint.batcher.started) == (2, 0), "once for each trip"


def test_a_busy_model_is_left_to_the_thread_that_runs_it() -> None:
    taken, _, endpoint = intake([call(1)])
    taken._receive()
    assert (endpoint.batcher.run, endpoint.batcher.started) == (0, 1)


def test_one_thread_is_always_left_to_receive() -> None:
    taken, _, endpoint = intake([call(1)], idle=True)
    with taken._may_run:
        taken._receive()
    assert (endpoint.batcher.run, endpoint.batcher.started) == (0, 1)
