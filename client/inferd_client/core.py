"""Every call's logic, once, for both clients: what to send, when to try again, what the answer means.

A call is a generator that yields steps (send these bytes, wait so long) and is sent their outcome. It does no I/O, so
that the clients are left with carrying out steps, one blocking, the other awaiting.
"""

from __future__ import annotations

import random as random_module
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from inferd_protocol.grpc_service_pb2 import (
    ModelMetadataRequest,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerReadyResponse,
)

from inferd_client import metadata, requests, splitting
from inferd_client.errors import (
    BadResponse,
    DeadlineExceeded,
    InferdError,
    InvalidInput,
    MessageTooLarge,
    ModelNotFound,
    Unavailable,
)
from inferd_client.requests import Arrays, ParameterValue, Plan, Wanted
from inferd_client.results import InferResult, parse_infer
from inferd_client.retry import NO_RETRY, Deadline, Retry

T = TypeVar("T")
_Ready = TypeVar("_Ready", ServerLiveResponse, ServerReadyResponse, ModelReadyResponse)

PLANS_PER_MODEL = 256
"""How many kinds of request a client remembers for a model. Beyond that it forgets them all: each is cheap to make."""


@dataclass(frozen=True, slots=True)
class Call:
    """A step: call this method with these bytes and at most so many seconds; the outcome is the answer's bytes."""

    method: str
    request: bytes
    timeout: float


@dataclass(frozen=True, slots=True)
class Wait:
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


@dataclass(frozen=True, slots=True)
class _Model:
    """What is known about a model: replaced as a whole when its metadata changes, so that no plan outlives it."""

    metadata: metadata.ModelMetadata
    plans: dict[object, Plan] = field(default_factory=dict)


class Core:
    """The calls of one client, and what it remembers between them.

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
        self._timeout = timeout
        self._retry = retry
        self._max_message_bytes = max_message_bytes
        self._clock = clock
        self._random = random
        self._models: dict[tuple[str, str], _Model] = {}

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
        return metadata.parse_server(
            (yield from self._call("ServerMetadata", b"", self._deadline(timeout), self._retry))
        )

    def model_metadata(self, model: str, version: str, timeout: float | None) -> Steps[metadata.ModelMetadata]:
        """See Client.model_metadata. What it answers is remembered, so it also refreshes what `infer` goes by."""
        return (yield from self._fetch(model, version, self._deadline(timeout))).metadata

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
        deadline = self._deadline(timeout)
        arrays: Arrays = {
            name: value if isinstance(value, np.ndarray) else np.asarray(value) for name, value in inputs.items()
        }
        tail = requests.tail(request_id, parameters) if request_id or parameters else b""
        sequence = requests.is_sequence(parameters)
        wanted = requests.wanted(outputs, classification) if outputs or classification else requests.EVERYTHING
        known = self._models.get((model, version))
        if known is not None:
            try:
                return (yield from self._infer_rows(known, version, arrays, wanted, tail, deadline, sequence))
            except InvalidInput as refusal:
                # The model may have been reloaded with other inputs since its metadata was fetched.
                if sequence:
                    raise
                try:
                    current = yield from self._fetch(model, version, deadline)
                except InferdError:
                    raise refusal from None
                if current.metadata == known.metadata:
                    raise
            except ModelNotFound:
                self._models.pop((model, version), None)
                raise
        else:
            current = yield from self._fetch(model, version, deadline)
        return (yield from self._infer_rows(current, version, arrays, wanted, tail, deadline, sequence))

    def _infer_rows(
        self,
        model: _Model,
        version: str,
        arrays: Arrays,
        wanted: Wanted,
        tail: bytes,
        deadline: Deadline,
        sequence: bool,
    ) -> Steps[InferResult]:
        """One request, or as many as it takes to keep each of them, and its answer, below the limits of both sides."""
        retry = NO_RETRY if sequence else self._retry
        waiting = [arrays]
        answered: list[tuple[int, InferResult]] = []
        while waiting:
            part = waiting.pop()
            try:
                request = self._build(model, version, part, wanted, tail)
                answer = yield from self._call("ModelInfer", request, deadline, retry)
            except MessageTooLarge as error:
                obstacle = "a sequence's request is not split" if sequence else splitting.obstacle(model.metadata, part)
                if obstacle is not None:
                    raise MessageTooLarge(f"{error}; {obstacle}") from error
                waiting += reversed(splitting.halves(part))
                continue
            result = parse_infer(answer)
            if not waiting and not answered:
                return result
            answered.append((splitting.rows(part), result))
        return splitting.join(answered)

    def _build(
        self,
        model: _Model,
        version: str,
        arrays: Arrays,
        wanted: Wanted,
        tail: bytes,
    ) -> bytes:
        key = (wanted, *[(name, array.shape, array.dtype) for name, array in arrays.items()])
        plan = model.plans.get(key)
        if plan is None:
            plan = requests.plan(model.metadata, version, arrays, wanted)
            if len(model.plans) >= PLANS_PER_MODEL:
                model.plans.clear()
            model.plans[key] = plan
        parts, size = plan.parts(arrays, tail)
        if size > self._max_message_bytes:
            raise MessageTooLarge(
                f"a request of {size} bytes for model '{model.metadata.name}' is over this client's limit of "
                f"{self._max_message_bytes} bytes"
            )
        return b"".join(parts)

    def _fetch(self, model: str, version: str, deadline: Deadline) -> Steps[_Model]:
        request = ModelMetadataRequest(name=model, version=version).SerializeToString()
        found = metadata.parse_model((yield from self._call("ModelMetadata", request, deadline, self._retry)))
        known = self._models.get((model, version))
        if known is None or known.metadata != found:
            known = self._models[model, version] = _Model(found)
        return known

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

    def _call(self, method: str, request: bytes, deadline: Deadline, retry: Retry) -> Steps[bytes]:
        """One call and its retries, as far as the deadline allows."""
        tried = 0
        while True:
            left = deadline.left()
            if left <= 0:
                raise DeadlineExceeded(f"the deadline passed before {method} could be sent")
            try:
                return (yield Call(method, request, left))
            except InferdError as error:
                wait = retry.delay(tried, self._random)
                tried += 1
                # A wait that cannot end before the deadline would only replace the error that says what is wrong.
                if tried >= retry.attempts or not retry.covers(error) or wait >= deadline.left():
                    raise
            yield Wait(wait)

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline.after(self._timeout if timeout is None else timeout, self._clock)
