"""Every call's logic, once, for both clients: what to send, when to try again, what the answer means.

A call is a generator that yields steps (send these bytes, wait so long) and is sent their outcome. It does no I/O, so
that the clients are left with carrying out steps, one blocking, the other awaiting.
"""

from __future__ import annotations

import math
import random as random_module
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from inferd_protocol.grpc_service_pb2 import (
    ModelConfigRequest,
    ModelMetadataRequest,
    ModelReadyRequest,
    ModelReadyResponse,
    ModelStatisticsRequest,
    RepositoryIndexRequest,
    ServerLiveResponse,
    ServerReadyResponse,
)

from inferd_client import metadata, model_statistics, repository, requests, splitting
from inferd_client.errors import (
    BadResponse,
    DeadlineExceeded,
    InferdError,
    InvalidInput,
    MessageTooLarge,
    ModelNotFound,
    Unavailable,
)
from inferd_client.known import Kind, Model
from inferd_client.requests import Arrays, ParameterValue, Wanted
from inferd_client.results import InferResult
from inferd_client.retry import NO_RETRY, Retry

T = TypeVar("T")
_Ready = TypeVar("_Ready", ServerLiveResponse, ServerReadyResponse, ModelReadyResponse)


KEPT_BYTES = 8 * 2**20
"""The largest message that a client keeps until its next one.

Freed after its call, beside grpc's own copy of it, a message of 200 KB makes malloc give the pages back to the system,
to be faulted in again by the next: 66 page faults a call, and most of its CPU time. One that is still there when the
next is made has the two take turns in the same memory.
"""


class Call(NamedTuple):
    """A step: call this method with these bytes and at most so many seconds; the outcome is the answer's bytes."""

    method: str
    request: bytes
    timeout: float


class Wait(NamedTuple):
    """A step: wait so many seconds; the outcome is empty bytes."""

    seconds: float


Step: TypeAlias = Call | Wait
Steps: TypeAlias = Generator[Step, bytes, T]


class InferOptions(TypedDict, total=False):
    """The optional arguments that all requests of `infer_many` share, as in `infer`."""

    outputs: Sequence[str] | None
    version: str
    parameters: Mapping[str, ParameterValue] | None
    timeout: float | None
    classification: Mapping[str, int] | None


Arguments: TypeAlias = tuple[
    str,
    Mapping[str, npt.ArrayLike],
    Sequence[str] | None,
    str,
    str,
    Mapping[str, ParameterValue] | None,
    float | None,
    Mapping[str, int] | None,
]
"""Those of `infer`, in its order. A plain tuple is the cheapest way to hand them on."""

Prepared: TypeAlias = tuple[Kind, bytes, float, float]
"""A request of a known kind, its bytes, the seconds that it may take, and the moment when they will be over."""


class _Request(NamedTuple):
    """A call of `infer`, its arguments checked as far as they can be without the model's metadata."""

    model: str
    version: str
    arrays: Arrays
    wanted: Wanted
    own: bytes
    deadline: float
    sequence: bool


class Core:
    """The calls of one client, and what it remembers between them.

    Raises InvalidInput for a timeout that is no positive, finite number.

    Safe to use from several threads: what it remembers is kept in dicts whose entries are only set and dropped.
    """

    def __init__(
        self,
        *,
        timeout: float,
        retry: Retry,
        max_message_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._timeout = _checked(timeout)
        self._retry = retry
        self._max_message_bytes = max_message_bytes
        self._clock = clock
        self._random = random
        self._models: dict[tuple[str, str], Model] = {}
        self._kept = b""

    def server_live(self, timeout: float | None) -> Steps[bool]:
        """See Client.server_live."""
        return (yield from self._ask("ServerLive", b"", ServerLiveResponse, "live", timeout))

    def server_ready(self, timeout: float | None) -> Steps[bool]:
        """See Client.server_ready."""
        return (yield from self._ask("ServerReady", b"", ServerReadyResponse, "ready", timeout))

    def model_ready(self, model: str, version: str, timeout: float | None) -> Steps[bool]:
        """See Client.model_ready."""
        request = ModelReadyRequest(name=model, version=version).SerializeToString()
        try:
            return (yield from self._ask("ModelReady", request, ModelReadyResponse, "ready", timeout))
        except ModelNotFound:
            # Newer Tritons answer so; older ones, and inferd, say that it is not ready.
            return False

    def server_metadata(self, timeout: float | None) -> Steps[metadata.ServerMetadata]:
        """See Client.server_metadata."""
        return metadata.parse_server((yield from self._once("ServerMetadata", b"", timeout)))

    def model_metadata(self, model: str, version: str, timeout: float | None) -> Steps[metadata.ModelMetadata]:
        """See Client.model_metadata. What it answers is remembered, so it also refreshes what `infer` goes by."""
        return (yield from self._fetch(model, version, self._deadline(timeout))).metadata

    def model_config(self, model: str, version: str, timeout: float | None) -> Steps[repository.ModelConfig]:
        """See Client.model_config."""
        request = ModelConfigRequest(name=model, version=version).SerializeToString()
        return repository.parse_config((yield from self._once("ModelConfig", request, timeout)))

    def statistics(
        self, model: str, version: str, timeout: float | None
    ) -> Steps[tuple[model_statistics.ModelStatistics, ...]]:
        """See Client.statistics."""
        request = ModelStatisticsRequest(name=model, version=version).SerializeToString()
        return model_statistics.parse_statistics((yield from self._once("ModelStatistics", request, timeout)))

    def repository_index(self, ready: bool, timeout: float | None) -> Steps[tuple[repository.ModelIndex, ...]]:
        """See Client.repository_index."""
        request = RepositoryIndexRequest(ready=ready).SerializeToString()
        return repository.parse_index((yield from self._once("RepositoryIndex", request, timeout)))

    def load_model(
        self,
        model: str,
        config: Mapping[str, Any] | str | None,
        files: Mapping[str, bytes] | None,
        labels: Mapping[str, int] | None,
        timeout: float | None,
    ) -> Steps[None]:
        """See Client.load_model."""
        request = repository.load_request(model, config, files, labels)
        yield from self._change("RepositoryModelLoad", request, model, timeout)

    def unload_model(self, model: str, unload_dependents: bool, timeout: float | None) -> Steps[None]:
        """See Client.unload_model."""
        request = repository.unload_request(model, unload_dependents)
        yield from self._change("RepositoryModelUnload", request, model, timeout)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        request_id: str = "",
        parameters: Mapping[str, ParameterValue] | None = None,
        timeout: float | None = None,
        classification: Mapping[str, int] | None = None,
    ) -> Steps[InferResult]:
        """See Client.infer."""
        arguments = (model, inputs, outputs, version, request_id, parameters, timeout, classification)
        prepared = self.prepare(arguments)
        if prepared is None:
            return (yield from self.complete(arguments))
        kind, message, seconds, deadline = prepared
        try:
            answer = yield Call("ModelInfer", message, seconds)
        except InferdError as error:
            failure = error
        else:
            return kind.read(answer)
        return (yield from self.complete(arguments, deadline, failure))

    def prepare(self, arguments: Arguments) -> Prepared | None:
        """A request like one before, the usual case, ready to be sent; None for any other, to be left to `complete`.

        It spares a small call the machinery for what may go wrong, which would be most of its time in this library.
        From the first failure on, `complete` takes over.
        Raises InvalidInput as `infer` does.
        """
        model, inputs, outputs, version, request_id, parameters, timeout, classification = arguments
        seconds = self._timeout if timeout is None else _checked(timeout)
        known = self._models.get((model, version))
        if known is None or classification or isinstance(outputs, str):
            return None
        key: list[object] = [tuple(outputs) if outputs else None]  # as in Model.kind: a call there would show
        for name, array in inputs.items():
            if not isinstance(array, np.ndarray):
                return None
            key += (name, array.shape, array.dtype)
        kind = known.kinds.get(tuple(key))
        if kind is None or kind.plan.size is None:
            return None
        own = requests.own_fields(request_id, parameters) if request_id or parameters else b""
        deadline = self._clock() + seconds
        try:
            message = kind.plan.build(inputs, own, self._max_message_bytes)  # type: ignore[arg-type]  # all are arrays
        except MessageTooLarge:
            return None
        if len(message) <= KEPT_BYTES:
            self._kept = message
        return kind, message, seconds, deadline

    def complete(
        self, arguments: Arguments, deadline: float | None = None, failure: InferdError | None = None
    ) -> Steps[InferResult]:
        """A request and all that it may take. `failure` is how its first attempt, if one was made, ended."""
        model, inputs, outputs, version, request_id, parameters, timeout, classification = arguments
        if deadline is None:
            deadline = self._deadline(timeout)
        arrays: Arrays = {
            name: value if isinstance(value, np.ndarray) else np.asarray(value) for name, value in inputs.items()
        }
        wanted = requests.wanted(outputs, classification) if outputs or classification else requests.EVERYTHING
        own = requests.own_fields(request_id, parameters) if request_id or parameters else b""
        request = _Request(model, version, arrays, wanted, own, deadline, requests.is_sequence(parameters))
        return (yield from self._infer(request, self._models.get((model, version)), failure))

    def _infer(self, request: _Request, known: Model | None, failure: InferdError | None) -> Steps[InferResult]:
        if known is None:
            current = yield from self._fetch(request.model, request.version, request.deadline)
            return (yield from self._infer_rows(current, request, failure))
        try:
            return (yield from self._infer_rows(known, request, failure))
        except ModelNotFound:
            self._models.pop((request.model, request.version), None)
            raise
        except InvalidInput as refusal:
            # The model may have been reloaded with other inputs since its metadata was fetched.
            if request.sequence:
                raise
            try:
                current = yield from self._fetch(request.model, request.version, request.deadline)
            except InferdError:
                raise refusal from None
            if current.metadata == known.metadata:
                raise
        return (yield from self._infer_rows(current, request, None))

    def _infer_rows(self, model: Model, request: _Request, failure: InferdError | None) -> Steps[InferResult]:
        """One message, or as many as it takes to keep each of them, and its answer, below the limits of both sides."""
        retry = NO_RETRY if request.sequence else self._retry
        waiting = [request.arrays]
        answered: list[tuple[Arrays, InferResult]] = []
        while waiting:
            part = waiting.pop()
            try:
                kind = model.kind(request.version, request.wanted, part)
                message = kind.plan.build(part, request.own, self._max_message_bytes)
                answer = yield from self._call("ModelInfer", message, request.deadline, retry, failure)
            except MessageTooLarge as error:
                obstacle = (
                    "a request of a sequence is not split"
                    if request.sequence
                    else splitting.obstacle(model.metadata, part)
                )
                if obstacle is not None:
                    raise MessageTooLarge(f"{error}; {obstacle}") from error
                waiting += reversed(splitting.halves(part))
            else:
                answered.append((part, kind.read(answer)))
            failure = None
        return splitting.join(answered)

    def _fetch(self, model: str, version: str, deadline: float) -> Steps[Model]:
        request = ModelMetadataRequest(name=model, version=version).SerializeToString()
        found = metadata.parse_model((yield from self._call("ModelMetadata", request, deadline, self._retry)))
        known = self._models.get((model, version))
        if known is None or known.metadata != found:
            known = self._models[model, version] = Model(found)
        return known

    def _once(self, method: str, request: bytes, timeout: float | None) -> Steps[bytes]:
        return (yield from self._call(method, request, self._deadline(timeout), self._retry))

    def _change(self, method: str, request: bytes, model: str, timeout: float | None) -> Steps[None]:
        """A call that changes what a model's versions and labels stand for, whether it ends well or not."""
        try:
            yield from self._once(method, request, timeout)
        finally:
            for known in [known for known in list(self._models) if known[0] == model]:
                self._models.pop(known, None)

    def _ask(self, method: str, request: bytes, kind: type[_Ready], name: str, timeout: float | None) -> Steps[bool]:
        """A question about health: nobody there to answer it is an answer, and trying again is up to who asks."""
        try:
            answer = yield from self._call(method, request, self._deadline(timeout), NO_RETRY)
        except Unavailable:
            return False
        try:
            return bool(getattr(kind.FromString(answer), name))
        except DecodeError as error:
            raise BadResponse(f"the answer to {method} is not one: {error}") from error

    def _call(
        self, method: str, request: bytes, deadline: float, retry: Retry, failure: InferdError | None = None
    ) -> Steps[bytes]:
        """One call and its retries, as far as the deadline allows; after a `failure`, without its first attempt."""
        tried = 0
        while True:
            if failure is None:
                left = deadline - self._clock()
                if left <= 0:
                    raise DeadlineExceeded(f"the deadline passed before {method} could be sent")
                try:
                    return (yield Call(method, request, left))
                except InferdError as error:
                    failure = error
            wait = retry.delay(tried, self._random)
            tried += 1
            # A wait that cannot end before the deadline would only replace the error that says what is wrong.
            if tried >= retry.attempts or not retry.covers(failure) or wait >= deadline - self._clock():
                raise failure
            failure = None
            yield Wait(wait)

    def _deadline(self, timeout: float | None) -> float:
        """The moment, on this core's clock, that is `timeout` seconds from now."""
        return self._clock() + (self._timeout if timeout is None else _checked(timeout))


def _checked(timeout: float) -> float:
    if not 0 < timeout < math.inf:
        raise InvalidInput(f"a timeout is a positive number of seconds, got {timeout}")
    return timeout
