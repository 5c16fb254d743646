"""ModelInfer, the same for every transport: bytes and a way to answer in, everything else behind."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from inferd_protocol.tensors import Tensor

from inferd_server.core.inference import InferenceCore
from inferd_server.errors import RuntimeFailure, ServerError
from inferd_server.frontend.access_log import AccessLog
from inferd_server.frontend.codec import encode_answer
from inferd_server.frontend.decoder import RequestDecoder, addressee
from inferd_server.frontend.status import Status, status_of
from inferd_server.request import AnswerForm
from inferd_server.scheduling.scheduler import Scheduler
from inferd_server.shared_memory import Regions


class Call(ABC):
    """A unary call as a transport hands it over: the reply to its request. Answered once, from any thread."""

    __slots__ = ("deadline_ns", "request_id")

    def __init__(self, deadline_ns: int | None) -> None:
        self.deadline_ns = deadline_ns
        self.request_id = ""

    @abstractmethod
    def cancelled(self) -> bool:
        """Whether the caller has gone."""

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
            self.end(status_of(error))
            return error if isinstance(error, ServerError) else RuntimeFailure(f"the answer cannot be encoded: {error}")
        return self.respond(message)

    def fail(self, error: ServerError) -> None:
        """Ends the call with the status of an error."""
        self.end(status_of(error))


class InferEndpoint:
    """What every transport gives its ModelInfer calls to."""

    def __init__(self, core: InferenceCore, regions: Regions, access_log: AccessLog | None = None) -> None:
        self._core = core
        self._decoder = RequestDecoder(regions)
        self._access_log = access_log

    def accept(self, message: bytes, call: Call, now_ns: int) -> Scheduler | None:
        """Takes a call over, whose answer comes later and from another thread, or at once.

        Returns the batcher that is to be started for it, None where the call is complete.
        """
        try:
            request = self._decoder.decode(message)
            call.request_id = request.id
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
        call.end(status_of(error))
