"""One inference: find the version, check the request, hand it to the version's batcher.

From `enqueue` on the batcher owns the request; its outputs come to the completion built here, which turns them into an
answer and completes the caller's reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from inferd_protocol.datatypes import BYTES
from inferd_protocol.tensors import Tensor

from inferd_server.core import validation
from inferd_server.core.classification import classify
from inferd_server.core.validation import Selection
from inferd_server.errors import Draining, InvalidRequest, ServerError
from inferd_server.repository.manager import RepositoryManager
from inferd_server.repository.servable import Servable
from inferd_server.request import InferenceAnswer, InferenceRequest, NamedTensor, Reply
from inferd_server.runtime.backend import Signature
from inferd_server.scheduling.dynamic_batcher import Closed
from inferd_server.scheduling.work import Work


class InferenceCore:
    """Answers inference requests from the models of a repository."""

    def __init__(self, repository: RepositoryManager, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._repository = repository
        self._clock_ns = clock_ns

    def infer(self, request: InferenceRequest, reply: Reply) -> None:
        """Starts an inference. The reply is completed later, from another thread, or at once where nothing has to run.

        Raises ServerError where the request is refused; the reply is then still the caller's.
        """
        servable = self._repository.find(request.model_name, request.model_version)
        arranged = validation.arrange(servable.signature, servable.config, request.inputs)
        selection = validation.select(servable.signature, request.outputs)
        completion = _Completion(servable, selection, request.id, reply)
        if arranged.rows == 0:
            completion.send(_without_rows(servable.signature))
            return
        expires_ns = self._clock_ns() + request.timeout_us * 1000 if request.timeout_us else None
        work = Work(arranged.inputs, arranged.rows, arranged.key, completion, expires_ns, request.nbytes)
        try:
            servable.batcher.enqueue(work)
        except Closed:
            # Versions are closed only when the server stops.
            raise Draining from None


class _Completion:
    """Turns the outputs of a run into the answer to one request."""

    __slots__ = ("_id", "_reply", "_selection", "_servable", "deadline_ns")

    def __init__(self, servable: Servable, selection: Sequence[Selection], request_id: str, reply: Reply) -> None:
        self._servable = servable
        self._selection = selection
        self._id = request_id
        self._reply = reply
        self.deadline_ns = reply.deadline_ns

    def cancelled(self) -> bool:
        return self._reply.cancelled()

    def send(self, outputs: Sequence[Tensor]) -> None:
        servable = self._servable
        try:
            tensors = [self._tensor(outputs[index], index, count) for index, count in self._selection]
        except ServerError as error:
            self._reply.fail(error)
            return
        self._reply.send(InferenceAnswer(servable.name, str(servable.version), self._id, tensors))

    def fail(self, error: ServerError) -> None:
        self._reply.fail(error)

    def _tensor(self, array: Tensor, index: int, count: int) -> NamedTensor:
        spec = self._servable.signature.outputs[index]
        if not count:
            return NamedTensor(spec.name, spec.datatype, array)
        labels = self._servable.labels.get(spec.name, ())
        batched = self._servable.config.batched
        return NamedTensor(spec.name, BYTES, classify(spec.name, spec.datatype, array, count, labels, batched=batched))


def _without_rows(signature: Signature) -> list[Tensor]:
    """The outputs of zero rows. Raises InvalidRequest where only a run could tell their shapes."""
    arrays: list[Tensor] = []
    for spec in signature.outputs:
        sizes = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
        if len(sizes) != len(spec.shape) - 1:
            raise InvalidRequest(
                f"the batch has no rows, and the shape of output '{spec.name}' depends on them: expected at least one"
            )
        arrays.append(np.empty((0, *sizes), spec.datatype.numpy))
    return arrays
