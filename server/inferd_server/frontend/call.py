"""One ModelInfer call as a transport hands it over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from inferd_protocol.tensors import Tensor

from inferd_server.errors import RuntimeFailure, ServerError
from inferd_server.frontend.codec import encode_answer
from inferd_server.frontend.status import Status, status_of
from inferd_server.request import AnswerForm, Trace

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
