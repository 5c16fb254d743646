"""What travels through the server: a request on its way in, its answer on its way out, and the reply that ends it.

    frontend: bytes -> InferenceRequest -> core: Plan, Work -> scheduling: batch -> outputs -> core -> Reply

A request is handed forward and never handed back: whoever holds it last completes its reply, exactly once.

A request is split into its form and its contents. The form, everything but the id and the tensors' elements, is the
same object for every request that looks alike, so that what follows from it is worked out once and not per request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from inferd_protocol.datatypes import BYTES, Datatype
from inferd_protocol.tensors import Tensor

from inferd_server.errors import ServerError
from inferd_server.shared_memory.regions import Window

Content: TypeAlias = memoryview | Tensor | Window
"""A tensor's elements in row-major order: bytes as they were received, an array, or a part of shared memory that is
read when the request runs. BYTES is always an array."""


@dataclass(frozen=True, slots=True)
class TensorForm:
    """A tensor without its elements."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client asked for. `classification` is the number of classes to answer, 0 for the tensor."""

    name: str
    classification: int = 0
    in_shared_memory: bool = False
    """Whether it is to be written to shared memory: the request's `places` say where."""


@dataclass(frozen=True, slots=True, eq=False)
class RequestForm:
    """A ModelInfer without its id and contents: consistent in itself, not yet held against a model."""

    model_name: str
    model_version: str
    inputs: tuple[TensorForm, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    timeout_us: int = 0
    """Longest wait in the queue, microseconds; 0 for no limit of its own."""
    priority: int = 0
    """1 runs before 2, and so on; 0, none, after all others."""
    in_sequence: bool = False
    """Whether its requests are steps of sequences, and so `SequenceRequest`s."""


class InferenceRequest:
    """A decoded ModelInfer. `contents` has an element for each of the form's inputs, of the size its shape says."""

    __slots__ = ("contents", "form", "id", "nbytes")

    def __init__(self, form: RequestForm, id: str, contents: Sequence[Content], nbytes: int) -> None:  # noqa: A002
        self.form = form
        self.id = id
        self.contents = contents
        self.nbytes = nbytes
        """Bytes that it holds in memory."""


class SharedMemoryRequest(InferenceRequest):
    """A request some of whose outputs go to shared memory: `places` has a window for each of these, else None."""

    __slots__ = ("places",)

    def __init__(
        self,
        form: RequestForm,
        id: str,  # noqa: A002
        contents: Sequence[Content],
        nbytes: int,
        places: tuple[Window | None, ...],
    ) -> None:
        super().__init__(form, id, contents, nbytes)
        self.places = places


class SequenceStep(NamedTuple):
    """A request's place in a sequence: which one, and whether it is the first or the last of it."""

    id: int | str
    start: bool
    end: bool


class SequenceRequest(InferenceRequest):
    """A request that is a step of a sequence. The step is not in the form: it differs from request to request.

    `places` are a SharedMemoryRequest's; empty where no output goes to shared memory.
    """

    __slots__ = ("places", "step")

    def __init__(
        self,
        form: RequestForm,
        id: str,  # noqa: A002
        contents: Sequence[Content],
        nbytes: int,
        step: SequenceStep,
        places: tuple[Window | None, ...] = (),
    ) -> None:
        super().__init__(form, id, contents, nbytes)
        self.step = step
        self.places = places


@dataclass(frozen=True, slots=True, eq=False)
class AnswerForm:
    """An answer without its id and its tensors' elements and shapes: the same object for all answers alike."""

    model_name: str
    model_version: str
    outputs: tuple[tuple[str, Datatype], ...]
    """Names and datatypes."""
    places: tuple[Window | None, ...] = ()
    """The shared memory that outputs are written to, None for those in the message; empty where all are."""
    plain: bool = field(init=False)
    """Whether every output is in the message, and of a size that its shape tells: none is BYTES."""

    def __post_init__(self) -> None:
        text = any(datatype is BYTES for _, datatype in self.outputs)
        object.__setattr__(self, "plain", not text and not self.places)


class Trace(Protocol):
    """What is noted of a request whose caller or operator wants to know where its time goes.

    Times are on `time.monotonic_ns`'s clock.
    """

    def ran(self, name: str, version: str, rows: int, arrived_ns: int, stages: tuple[int, int, int, int]) -> None:
        """A model's version answered: `stages` are its `Stages`, nanoseconds."""

    def failed(self, name: str, version: str, rows: int, arrived_ns: int, error: Exception | None, ns: int) -> None:
        """A model's version did not, `ns` nanoseconds later; without an error because the caller has gone."""

    def end(self, code: str, error: Exception | None) -> None:
        """The call ended with a gRPC status; with CANCELLED and no error because the caller has gone."""


class Reply(Protocol):
    """The caller's end of a request. Completed once, from any thread."""

    request_id: str
    """As the caller gave it."""
    deadline_ns: int | None
    """On `time.monotonic_ns`'s clock; None where the caller set none."""
    trace: Trace | None
    """None for a request that is not traced, as most are."""

    def cancelled(self) -> bool:
        """Whether the caller has gone, so that the work is for nobody."""

    def send(self, form: AnswerForm, outputs: Sequence[Tensor]) -> ServerError | None:
        """Answers the call. The arrays are read before this returns.

        Returns the error where the call had to be ended with one instead.
        """

    def fail(self, error: ServerError) -> None:
        """Ends the call with an error."""
