"""ModelInfer, the same for every transport: bytes and a way to answer in, everything else behind."""

from __future__ import annotations

from typing import Protocol

from inferd_server.core.inference import InferenceCore
from inferd_server.errors import ServerError
from inferd_server.frontend.codec import decode_request, encode_answer
from inferd_server.frontend.status import Status, status_of
from inferd_server.request import InferenceAnswer


class Call(Protocol):
    """A unary call as a transport hands it over. Answered once, from any thread."""

    message: bytes
    deadline_ns: int | None
    """On `time.monotonic_ns`'s clock; None where the caller set none."""

    def cancelled(self) -> bool:
        """Whether the caller has gone."""

    def respond(self, message: bytes) -> None:
        """Answers with the bytes of the response message."""

    def fail(self, status: Status) -> None:
        """Ends the call with a status."""


def handle(call: Call, core: InferenceCore) -> None:
    """Starts a ModelInfer call, or ends it where it is refused."""
    try:
        core.infer(decode_request(call.message), _CallReply(call))
    except Exception as error:  # noqa: BLE001 - whatever goes wrong, the caller gets a status
        call.fail(status_of(error))


class _CallReply:
    """The reply that encodes the answer and hands it to the transport."""

    __slots__ = ("_call", "deadline_ns")

    def __init__(self, call: Call) -> None:
        self._call = call
        self.deadline_ns = call.deadline_ns

    def cancelled(self) -> bool:
        return self._call.cancelled()

    def send(self, answer: InferenceAnswer) -> None:
        try:
            message = encode_answer(answer)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be encoded must not take the batch along
            self._call.fail(status_of(error))
            return
        self._call.respond(message)

    def fail(self, error: ServerError) -> None:
        self._call.fail(status_of(error))
