"""The native front: unary ModelInfer without grpcio, whose Python costs more than most models.

`pygrpc-native` does HTTP/2 and gRPC in native threads and hands over whole calls, as many at once as there are. It
knows no TLS, and here it is given one method: every other one it passes on, unread, to the complete grpcio server that
listens behind it on a socket of the file system. It enforces deadlines, cancellation and streams a connection; the size
of a message is known only when the message is there, and checked then.

Two threads receive. Where a request finds its model idle, the thread that received it runs it as well, unless the
other one is running already: one of them is always left to receive. So a lone request is handed over to nobody, and
under load one thread decodes while another runs.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from inferd_protocol.methods import METHODS
from pygrpc_native import EVENT_CALL, NativeGrpcFront

from inferd_server.background import run_in_background
from inferd_server.config import ServerConfig
from inferd_server.errors import ConfigurationError, Draining, MessageTooLarge, ServerError
from inferd_server.frontend.call import Call, Metadata
from inferd_server.frontend.grpc_server import GrpcServer, taken, target
from inferd_server.frontend.infer import InferEndpoint
from inferd_server.frontend.status import Status, status_of
from inferd_server.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from pygrpc_native._native import DetailedEvent

_MOST_EVENTS = 128
"""Calls taken over at once: more than a batch, so that one trip fills the next."""
_IO_THREADS = 1
"""One native thread carries more calls than one Python thread can decode; on two CPUs a prototype lost a tenth of its
throughput with two."""
_WRITTEN_POLL_SECONDS = 0.005
_RELAYED_SECONDS = 1.0
"""What the last answers of streams get to leave in: the front's counts leave out what it passes on, and closing cuts
it off. Without it one of three clients lost an answer of 4 MB."""
_INFER = METHODS["ModelInfer"].path


class NativeServer:
    """The native front with the complete server behind it. Listens from `start` on.

    `complete` builds that server, given the address that it is to listen on.
    """

    def __init__(self, config: ServerConfig, endpoint: InferEndpoint, complete: Callable[[str], GrpcServer]) -> None:
        # A folder that only this user may enter: what comes through the socket has passed no check of the front's.
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="inferd-")
        except OSError as error:
            raise ConfigurationError(
                f"--transport native needs a folder for temporary files: {error}; "
                "make one writable, name it in TMPDIR, or use --transport grpcio"
            ) from error
        socket = Path(self._folder.name) / "complete.sock"
        self._complete = complete(f"unix:{socket}")
        address = target(config)
        try:
            self._front = NativeGrpcFront(
                address,
                [(_INFER, False)],
                io_threads=_IO_THREADS,
                call_details=True,
                metrics=True,
                max_concurrent_streams=config.grpc_max_concurrent_streams,
                reuse_port=config.workers > 1,
            )
        except OSError as error:
            self._folder.cleanup()
            raise taken(address) from error
        self._front.set_fallback(str(socket))
        self.address = f"{address.rpartition(':')[0]}:{self._front.bound_port}"
        self._intake = _Intake(self._front, endpoint, config.grpc_max_message_size)

    async def start(self) -> None:
        """Accepts calls: the server is live, and not yet ready."""
        await self._complete.start()
        self._front.start()
        self._intake.start()

    def set_serving(self, serving: bool) -> None:
        """Tells health checks, those that watch included, whether the server should be sent calls."""
        self._complete.set_serving(serving)

    async def stop(self, timeout: float) -> None:
        """Refuses new calls, gives those that run `timeout` seconds to finish, and closes every connection."""
        ends = time.monotonic() + timeout
        self._intake.refuse()
        streams = self._complete.end_streams()
        await run_in_background(lambda: self._intake.wait(timeout), "draining")
        await self._complete.stop(max(0.0, ends - time.monotonic()))
        if streams:
            await asyncio.sleep(max(0.0, min(_RELAYED_SECONDS, ends - time.monotonic())))
        self._front.close()
        self._folder.cleanup()


class _NativeCall(Call):
    """A call at the front, known there by a number."""

    __slots__ = ("_call_id", "_intake")

    def __init__(self, intake: _Intake, call_id: int, deadline_ns: int | None, metadata: Metadata) -> None:
        super().__init__(deadline_ns, metadata)
        self._intake = intake
        self._call_id = call_id

    def respond(self, message: bytes) -> ServerError | None:
        return self._intake.respond(self._call_id, message)

    def end(self, status: Status) -> None:
        self._intake.end(self._call_id, status)


class _Intake:
    """Takes calls from the front to the endpoint, and their outcomes back."""

    def __init__(self, front: NativeGrpcFront, endpoint: InferEndpoint, max_message_size: int) -> None:
        self._front = front
        self._endpoint = endpoint
        self._max_message_size = max_message_size
        self._calls: dict[int, _NativeCall] = {}
        """Those that are not answered."""
        self._may_run = threading.Lock()
        """Held by the one of the two threads that runs a model."""
        self._refusing = False
        self._none_left = threading.Event()

    def start(self) -> None:
        """Starts the two threads. They end when the front is closed."""
        for number in range(2):
            threading.Thread(target=self._receive, name=f"intake-{number}", daemon=True).start()

    def refuse(self) -> None:
        """From here on new calls are answered that the server is shutting down."""
        self._refusing = True
        if not self._calls:
            self._none_left.set()

    def wait(self, timeout: float) -> None:
        """Returns when every call taken is answered and every answer has left, or after `timeout` seconds."""
        ends = time.monotonic() + timeout
        self._none_left.wait(timeout)
        # Closing cuts answers off that are still being written, and only the front's own counts say when they are.
        while time.monotonic() < ends and self._being_written():
            time.sleep(_WRITTEN_POLL_SECONDS)

    def _being_written(self) -> bool:
        metrics = self._front.metrics()
        assert metrics is not None
        return any(
            method["started"] > sum(status["count"] for status in method["status"].values())
            for method in metrics["methods"].values()
        )

    def respond(self, call_id: int, message: bytes) -> ServerError | None:
        """Answers a call. Returns the error that it is ended with where the answer is too large."""
        if len(message) > self._max_message_size:
            error = MessageTooLarge("answer", len(message), self._max_message_size)
            self.end(call_id, status_of(error))
            return error
        self._front.respond(call_id, message)
        self._done(call_id)
        return None

    def end(self, call_id: int, status: Status) -> None:
        """Ends a call with a status."""
        self._front.fail(call_id, status.code.value[0], status.message, status.metadata)
        self._done(call_id)

    def _done(self, call_id: int) -> None:
        self._calls.pop(call_id, None)
        if self._refusing and not self._calls:
            self._none_left.set()

    def _receive(self) -> None:
        """Takes calls in, and runs those that find their model idle, until the front is closed."""
        while (events := self._front.recv_batch_details(_MOST_EVENTS)) is not None:
            to_run: Scheduler | None = None
            for batcher in self._accept(events):
                if to_run is None and batcher.can_run_here and self._may_run.acquire(blocking=False):
                    to_run = batcher
                else:
                    batcher.start()
            if to_run is not None:
                try:
                    to_run.run_here()
                finally:
                    self._may_run.release()

    def _accept(self, events: list[DetailedEvent]) -> set[Scheduler]:
        """Hands calls to the endpoint. Returns the batchers to be started."""
        now_ns = time.monotonic_ns()
        started: set[Scheduler] = set()
        for kind, call_id, _, message, _, details in events:
            if kind != EVENT_CALL or message is None or details is None:
                # Cancelled, or its deadline passed; the front has told the caller.
                if (gone := self._calls.get(call_id)) is not None:
                    gone.cancel()
                    self._done(call_id)
                continue
            metadata, _, remaining = details
            call = _NativeCall(self, call_id, None if remaining is None else now_ns + int(remaining * 1e9), metadata)
            self._calls[call_id] = call
            if self._refusing:
                self._endpoint.refuse(Draining(), message, call, now_ns)
            elif len(message) > self._max_message_size:
                error = MessageTooLarge("request", len(message), self._max_message_size)
                self._endpoint.refuse(error, message, call, now_ns)
            elif (batcher := self._endpoint.accept(message, call, now_ns)) is not None:
                started.add(batcher)
        return started
