"""What travels through the server: a request on its way in, its answer on its way out, and the reply that ends it.

    frontend: bytes -> InferenceRequest -> core: Work -> scheduling: batch -> outputs -> core: InferenceAnswer -> Reply

A request is handed forward and never handed back: whoever holds it last completes its reply, exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inferd_protocol.datatypes import Datatype
from inferd_protocol.tensors import Tensor

from inferd_server.errors import ServerError


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor with its name and datatype. `array` has the dtype `datatype.numpy`."""

    name: str
    datatype: Datatype
    array: Tensor


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client asked for. `classification` is the number of classes to answer, 0 for the tensor."""

    name: str
    classification: int = 0


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A decoded ModelInfer: consistent in itself, not yet held against a model."""

    model_name: str
    model_version: str
    id: str
    inputs: Sequence[NamedTensor]
    outputs: Sequence[RequestedOutput]
    nbytes: int = 0
    """Bytes of the message that it came in, which its tensors view."""
    timeout_us: int = 0
    """Longest wait in the queue, microseconds; 0 for no limit of its own."""


@dataclass(frozen=True, slots=True)
class InferenceAnswer:
    """What a ModelInfer is answered with."""

    model_name: str
    model_version: str
    id: str
    outputs: Sequence[NamedTensor]


class Reply(Protocol):
    """The caller's end of a request. Completed once, from any thread."""

    deadline_ns: int | None
    """On `time.monotonic_ns`'s clock; None where the caller set none."""

    def cancelled(self) -> bool:
        """Whether the caller has gone, so that the work is for nobody."""

    def send(self, answer: InferenceAnswer) -> None:
        """Answers the call."""

    def fail(self, error: ServerError) -> None:
        """Ends the call with an error."""
