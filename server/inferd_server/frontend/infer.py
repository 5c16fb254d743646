"""ModelInfer, the same for every transport: bytes and a way to answer in, everything else behind."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from inferd_protocol.tensors import Tensor

from inferd_server.core.inference import InferenceCore
from inferd_server.errors import RuntimeFailure, ServerError
from inferd_server.frontend.access_log import AccessLog
from inferd_server.frontend.codec import encode_answer
from inferd_server.frontend.decoder import RequestDecoder, addressee
from inferd_server.frontend.status import Status, status_of
from inferd_server.request import AnswerForm, Trace
from inferd_server.scheduling.scheduler import Scheduler
from inferd_server.shared_memory import Regions

if TYPE_CHECKING:
    from inferd_server.frontend.tracing import Traces

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


class Call(ABC):
    """A unary call as a transport hands it over: the reply to its request. Answered once, from any thread."""

    __slots__ = ("_gone", "deadline_ns", "metadata", "request_id", "trace")

    def __init__(self, deadline_ns: int | None, metadata: Metadata = ()) -> None:
        self.deadline_ns = deadline_ns
        self.metadata = metadata
        self.request_id = ""
        self.trace: Trace | None = None
        self._gone = False

    def cancelled(self) -> bool:
        """Whether the caller has gone."""
        return self._gone

    def cancel(self) -> None:
        """The caller has gone: what still waits in a queue is for nobody."""
        self._gone = True
        if self.trace is not None:
            self.trace.end("CANCELLED", None)

    @abstractmethod
    def respond(self, message: bytes) -> ServerError | None:
        """Answers with the bytes of the response message. Returns the error where they could not be sent."""

    @abstractmethod
    def end(self, status: Status) -> None:
        """Ends the call with a status."""

    def send(self, form: AnswerForm, outputs: Sequence[Tensor]) -> ServerError | None:
        """Encodes the answer and responds with it. Returns the error where the call was ended with one instead."""
        try:
            message = encode_answer(form, self.request_id, outputs)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be encoded must not take the batch along
            self.fail(error)
            return error if isinstance(error, ServerError) else RuntimeFailure(f"the answer cannot be encoded: {error}")
        told = self.respond(message)
        if self.trace is not None:
            self.trace.end("OK" if told is None else status_of(told).code.name, told)
        return told

    def fail(self, error: Exception) -> None:
        """Ends the call with the status of an error."""
        status = status_of(error)
        self.end(status)
        if self.trace is not None:
            self.trace.end(status.code.name, error)


class InferEndpoint:
    """What every transport gives its ModelInfer calls to."""

    def __init__(
        self, core: InferenceCore, regions: Regions, access_log: AccessLog | None = None, traces: Traces | None = None
    ) -> None:
        self._core = core
        self._decoder = RequestDecoder(regions)
        self._access_log = access_log
        self._traces = traces
        self.reads_metadata = traces is not None
        """Whether calls are to bring their metadata along."""

    def accept(self, message: bytes, call: Call, now_ns: int) -> Scheduler | None:
        """Takes a call over, whose answer comes later and from another thread, or at once.

        Returns the batcher that is to be started for it, None where the call is complete.
        """
        try:
            request = self._decoder.decode(message)
            call.request_id = request.id
            if self._traces is not None:
                call.trace = self._traces.begin(call.metadata, request.form.model_name, request.id, now_ns)
            return self._core.accept(request, call, now_ns)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the caller gets a status
            self.refuse(error, message, call, now_ns)
            return None

    def refuse(self, error: Exception, message: bytes, call: Call, now_ns: int) -> None:
        """Counts a call that came at `now_ns` and that no batcher takes, and ends it."""
        name, version = addressee(message)
        ns = time.monotonic_ns() - now_ns
        self._core.count_refusal(error, name, version, ns)
        if self._access_log is not None:
            self._access_log.refused(call.request_id, name, version, error, ns)
        if self._traces is not None and call.trace is None:
            call.trace = self._traces.begin(call.metadata, name, call.request_id, now_ns)
        call.fail(error)
