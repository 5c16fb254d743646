"""Calls on grpcio's event loop: handed to the endpoint together, their outcomes brought home together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import grpc

from inferd_server.errors import ServerError
from inferd_server.frontend.call import Call, Metadata
from inferd_server.frontend.infer import InferEndpoint
from inferd_server.frontend.status import Status
from inferd_server.scheduling.scheduler import Scheduler

Context = grpc.aio.ServicerContext[Any, Any]


async def abort(context: Context, status: Status) -> None:
    """Ends a call with a status: raises what grpcio's handlers are left with."""
    await context.abort(status.code, status.message, status.metadata)


def deadline_ns(context: Context) -> int | None:
    """When a call's deadline passes, on `time.monotonic_ns`'s clock; None where it has none."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic_ns() + int(remaining * 1e9)


class AioCall(Call):
    """A call on the event loop. Answers come from other threads and are brought home by `_Homecoming`."""

    __slots__ = ("_homecoming", "_outcome")

    def __init__(self, deadline_ns: int | None, metadata: Metadata, homecoming: _Homecoming) -> None:
        super().__init__(deadline_ns, metadata)
        self._homecoming = homecoming
        self._outcome: asyncio.Future[bytes | Status] = homecoming.loop.create_future()

    def respond(self, message: bytes) -> ServerError | None:
        """Answers with the bytes of the response message."""
        self._homecoming.bring(self._outcome, message)
        return None

    def end(self, status: Status) -> None:
        """Ends the call with a status."""
        self._homecoming.bring(self._outcome, status)

    async def outcome(self) -> bytes | Status:
        """The answer, or why there is none. A caller who is cancelled in the meantime has gone."""
        try:
            return await self._outcome
        except asyncio.CancelledError:
            # The caller cancelled, or its deadline passed.
            self.cancel()
            raise


class AioIntake:
    """Hands calls to the endpoint. Used on the event loop alone."""

    def __init__(self, endpoint: InferEndpoint) -> None:
        self._endpoint = endpoint
        self._homecoming: _Homecoming | None = None
        self._to_start: set[Scheduler] = set()

    def call(self, deadline_ns: int | None, context: Context) -> AioCall:
        """A call, or one of a stream's requests, to be accepted."""
        if self._homecoming is None:
            self._homecoming = _Homecoming(asyncio.get_running_loop())
        metadata = tuple(context.invocation_metadata() or ()) if self._endpoint.reads_metadata else ()
        return AioCall(deadline_ns, metadata, self._homecoming)

    def accept(self, message: bytes, call: AioCall) -> bool:
        """Takes a call over. False where it is complete at once: it is refused, or there is nothing to run."""
        batcher = self._endpoint.accept(message, call, time.monotonic_ns())
        if batcher is None:
            return False
        if not self._to_start:
            # Once the loop has gone through the calls that are ready: they make one batch, and one wake-up.
            asyncio.get_running_loop().call_soon(self._start)
        self._to_start.add(batcher)
        return True

    def _start(self) -> None:
        for batcher in self._to_start:
            batcher.start()
        self._to_start.clear()


class _Homecoming:
    """Takes outcomes from worker threads to the event loop: one wake-up for all that are there, not one each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._arrived: deque[tuple[asyncio.Future[bytes | Status], bytes | Status]] = deque()
        self._called = False

    def bring(self, future: asyncio.Future[bytes | Status], outcome: bytes | Status) -> None:
        self._arrived.append((future, outcome))
        if not self._called:
            self._called = True
            self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Before the queue is emptied: whoever appends from here on calls again.
        self._called = False
        while self._arrived:
            future, outcome = self._arrived.popleft()
            if not future.done():
                future.set_result(outcome)
