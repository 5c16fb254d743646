"""ModelStreamInfer: many requests and their answers on one call.

The requests of a stream run side by side, in batches with everybody else's. They are answered in the order in which
they came, as Triton answers for models with one answer a request, so that a client may do without ids.

A request that fails has an answer that says so, and the stream goes on. With `triton_grpc_error: true` in the call's
metadata the first failure ends the stream instead, with the status that ModelInfer would have had.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from inferd_server.errors import Draining, MessageTooLarge
from inferd_server.frontend.aio_calls import AioCall, AioIntake, Context, abort, deadline_ns
from inferd_server.frontend.status import Status, status_of
from inferd_server.frontend.stream_messages import request_id, stream_answer, stream_error

_MOST_REQUESTS = 256
"""Requests of one stream that are read and not yet answered: several batches, so that one stream can keep a model
busy. The next is read when the reader at the other end has taken an answer."""
_ERRORS_END_IT = ("triton_grpc_error", "true")


class StreamInfer:
    """ModelStreamInfer as grpcio calls it. Messages, and the requests read ahead, are bounded by `max_message_size`."""

    def __init__(self, intake: AioIntake, max_message_size: int) -> None:
        self._intake = intake
        self._max_message_size = max_message_size
        self._streams: set[_Stream] = set()

    async def call(self, _: AsyncIterator[bytes], context: Context) -> None:
        """Answers a stream until its client has closed its side and has every answer."""
        stream = _Stream(self._intake, self._max_message_size, context)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.remove(stream)

    def drain(self) -> bool:
        """From here on no stream is read. Each ends when it has answered what was. Whether there are any."""
        for stream in self._streams:
            stream.drain()
        return bool(self._streams)


class _Stream:
    """One stream: a task that reads requests, and the handler's own, which writes the answers."""

    def __init__(self, intake: AioIntake, max_message_size: int, context: Context) -> None:
        self._intake = intake
        self._max_message_size = max_message_size
        self._context = context
        self._deadline_ns = deadline_ns(context)
        self._errors_end_it = _ERRORS_END_IT in (context.invocation_metadata() or ())
        self._calls: asyncio.Queue[tuple[AioCall, int] | None] = asyncio.Queue()
        """Those that are not answered and the bytes of their messages, in the order they came; None after the last."""
        self._requests = self._bytes = 0
        """Read and not yet answered."""
        self._room = asyncio.Event()
        self._room.set()
        self._reading: asyncio.Task[None] | None = None
        self._drained = False

    async def run(self) -> None:
        """Returns when every request is answered. Raises what ends the call otherwise."""
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._calls.put_nowait(None))
        try:
            await self._write()
            if self._drained:
                await abort(self._context, status_of(Draining()))
            await self._reading
        finally:
            self._reading.cancel()
            await asyncio.wait({self._reading})
            while not self._calls.empty():
                if (waiting := self._calls.get_nowait()) is not None:
                    waiting[0].cancel()

    def drain(self) -> None:
        """Reads no more."""
        if self._reading is not None and self._reading.cancel():
            self._drained = True

    async def _read(self) -> None:
        while await self._room.wait():
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            call = self._intake.call(self._deadline_ns, self._context)
            if not self._intake.accept(message, call) and not call.request_id:
                # It may have been refused before its id was known, and its client wants to know which it was.
                call.request_id = request_id(message)
            self._calls.put_nowait((call, len(message)))
            self._count(1, len(message))

    async def _write(self) -> None:
        while (waiting := await self._calls.get()) is not None:
            call, nbytes = waiting
            await self._context.write(await self._answer(call))
            self._count(-1, -nbytes)

    async def _answer(self, call: AioCall) -> bytes:
        outcome = await call.outcome()
        if not isinstance(outcome, Status):
            message = stream_answer(outcome)
            if len(message) <= self._max_message_size:
                return message
            outcome = status_of(MessageTooLarge("answer", len(message), self._max_message_size))
        if self._errors_end_it:
            await abort(self._context, outcome)
        return stream_error(call.request_id, outcome.message)

    def _count(self, requests: int, nbytes: int) -> None:
        self._requests += requests
        self._bytes += nbytes
        if self._requests < _MOST_REQUESTS and self._bytes < self._max_message_size:
            self._room.set()
        else:
            self._room.clear()
