"""ModelStreamInfer with a transport and an endpoint that the test holds in its hands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from inferd_protocol import grpc_service_pb2 as pb
from inferd_server.errors import InvalidRequest
from inferd_server.frontend.aio_calls import AioIntake
from inferd_server.frontend.call import Call
from inferd_server.frontend.stream import _MOST_REQUESTS, StreamInfer

LIMIT = 1000


class Aborted(Exception):
    pass


class Context:
    """A stream from its server's side: what the client sends, and what it has been sent."""

    def __init__(self, *metadata: tuple[str, str], remaining: float | None = None) -> None:
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.answers: list[pb.ModelStreamInferResponse] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.code: grpc.StatusCode | None = None
        self._metadata = metadata
        self._remaining = remaining

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self.requests.put_nowait(message)

    def half_close(self) -> None:
        self.requests.put_nowait(grpc.aio.EOF)

    def time_remaining(self) -> float | None:
        return self._remaining

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    async def read(self) -> Any:
        return await self.requests.get()

    async def write(self, message: bytes) -> None:
        await self.may_write.wait()
        self.answers.append(pb.ModelStreamInferResponse.FromString(message))

    async def abort(self, code: grpc.StatusCode, *_: object) -> None:
        self.code = code
        raise Aborted


class Batcher:
    started = 0

    def start(self) -> None:
        self.started += 1


class Endpoint:
    """Takes every message that is not 'refused'."""

    reads_metadata = False

    def __init__(self) -> None:
        self.batcher = Batcher()
        self.calls: dict[bytes, Call] = {}

    def accept(self, message: bytes, call: Call, now_ns: int) -> Batcher | None:
        self.calls[message] = call
        if message == REFUSED:
            call.fail(InvalidRequest("no"))
            return None
        return self.batcher


REFUSED = pb.ModelInferRequest(id="refused").SerializeToString()


def answer(text: str) -> bytes:
    return pb.ModelInferResponse(id=text).SerializeToString()


class Bench:
    def __init__(self, *metadata: tuple[str, str], remaining: float | None = None) -> None:
        self.context = Context(*metadata, remaining=remaining)
        self.endpoint = Endpoint()
        self.streams = StreamInfer(AioIntake(self.endpoint), LIMIT)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.streams.call(None, self.context))  # type: ignore[arg-type]

    def ids(self) -> list[str]:
        return [given.infer_response.id for given in self.context.answers]

    async def until(self, true: Callable[[], bool]) -> None:
        """Lets the loop go round until it has settled, or what is waited for is so."""
        for _ in range(10 * _MOST_REQUESTS):
            if true():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never came")

    async def settle(self) -> None:
        for _ in range(20 * _MOST_REQUESTS):
            await asyncio.sleep(0)


def bench(test: Callable[[Bench], Awaitable[None]], *metadata: tuple[str, str], remaining: float | None = None) -> None:
    async def run() -> None:
        made = Bench(*metadata, remaining=remaining)
        try:
            await test(made)
        finally:
            made.task.cancel()
            await asyncio.wait({made.task})

    asyncio.run(run())


def test_requests_run_side_by_side_and_are_answered_in_their_order() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a", b"b", b"c")
        await it.until(lambda: len(it.endpoint.calls) == 3)
        await it.until(lambda: it.endpoint.batcher.started == 1)
        it.endpoint.calls[b"c"].respond(answer("c"))
        it.endpoint.calls[b"b"].respond(answer("b"))
        await it.settle()
        assert it.ids() == []
        it.endpoint.calls[b"a"].respond(answer("a"))
        await it.until(lambda: it.ids() == ["a", "b", "c"])
        assert all(given.infer_response.parameters["triton_final_response"].bool_param for given in it.context.answers)
        it.context.half_close()
        await asyncio.wait_for(it.task, 10)

    bench(test)


def test_a_refused_request_keeps_its_place_and_its_id() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a", REFUSED, b"b")
        it.context.half_close()
        await it.until(lambda: len(it.endpoint.calls) == 3)
        for name in ("a", "b"):
            it.endpoint.calls[name.encode()].respond(answer(name))
        await asyncio.wait_for(it.task, 10)
        assert it.ids() == ["a", "refused", "b"]
        assert [given.error_message for given in it.context.answers] == ["", "no", ""]

    bench(test)


def test_the_first_error_ends_a_stream_that_wants_it_so_and_what_waits_is_forgotten() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a", REFUSED, b"b")
        await it.until(lambda: len(it.endpoint.calls) == 3)
        it.endpoint.calls[b"a"].respond(answer("a"))
        with pytest.raises(Aborted):
            await asyncio.wait_for(it.task, 10)
        assert it.context.code is grpc.StatusCode.INVALID_ARGUMENT
        assert it.ids() == ["a"]
        assert it.endpoint.calls[b"b"].cancelled()

    bench(test, ("triton_grpc_error", "true"))


def test_no_more_requests_are_read_than_may_wait() -> None:
    async def test(it: Bench) -> None:
        it.context.may_write.clear()
        it.context.send(*(b"%d" % number for number in range(2 * _MOST_REQUESTS)))
        await it.settle()
        assert len(it.endpoint.calls) == _MOST_REQUESTS
        for number in range(_MOST_REQUESTS):
            it.endpoint.calls[b"%d" % number].respond(answer(str(number)))
        await it.settle()
        assert len(it.endpoint.calls) == _MOST_REQUESTS, "answers that nobody takes make no room"
        it.context.may_write.set()
        await it.until(lambda: len(it.endpoint.calls) == 2 * _MOST_REQUESTS)

    bench(test)


def test_no_more_bytes_are_read_than_may_wait() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a" * (LIMIT - 1), b"b", b"c")
        await it.settle()
        assert set(it.endpoint.calls) == {b"a" * (LIMIT - 1), b"b"}
        it.endpoint.calls[b"a" * (LIMIT - 1)].respond(answer("a"))
        await it.until(lambda: b"c" in it.endpoint.calls)

    bench(test)


def test_an_answer_over_the_limit_is_an_error_of_its_request() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a")
        await it.until(lambda: bool(it.endpoint.calls))
        it.endpoint.calls[b"a"].request_id = "a"
        it.endpoint.calls[b"a"].respond(answer("x" * LIMIT))
        await it.until(lambda: it.ids() == ["a"])
        assert f"expected at most {LIMIT}" in it.context.answers[0].error_message

    bench(test)


def test_a_stream_that_is_cancelled_has_nobody_for_its_answers() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a", b"b")
        await it.until(lambda: len(it.endpoint.calls) == 2)
        it.task.cancel()
        await asyncio.wait({it.task})
        assert all(call.cancelled() for call in it.endpoint.calls.values())

    bench(test)


def test_draining_reads_no_more_and_answers_what_was_read() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a")
        await it.until(lambda: len(it.endpoint.calls) == 1)
        it.streams.drain()
        it.context.send(b"b")
        await it.settle()
        assert set(it.endpoint.calls) == {b"a"}
        it.endpoint.calls[b"a"].respond(answer("a"))
        with pytest.raises(Aborted):
            await asyncio.wait_for(it.task, 10)
        assert it.ids() == ["a"]
        assert it.context.code is grpc.StatusCode.UNAVAILABLE

    bench(test)


def test_draining_at_the_very_start_ends_the_stream() -> None:
    async def test(it: Bench) -> None:
        await asyncio.sleep(0)
        it.streams.drain()
        with pytest.raises(Aborted):
            await asyncio.wait_for(it.task, 10)

    bench(test)


def test_draining_leaves_a_stream_alone_that_is_read_to_its_end() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a")
        it.context.half_close()
        await it.until(lambda: len(it.endpoint.calls) == 1)
        await it.settle()
        it.streams.drain()
        it.endpoint.calls[b"a"].respond(answer("a"))
        await asyncio.wait_for(it.task, 10)
        assert it.ids() == ["a"]

    bench(test)


def test_the_deadline_of_a_stream_is_that_of_its_requests() -> None:
    async def test(it: Bench) -> None:
        it.context.send(b"a", b"b")
        await it.until(lambda: len(it.endpoint.calls) == 2)
        first, second = it.endpoint.calls.values()
        assert first.deadline_ns is not None
        assert first.deadline_ns == second.deadline_ns

    bench(test, remaining=5.0)
