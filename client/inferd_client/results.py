"""An answer: arrays by output name, and which model and version gave them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from inferd_protocol.datatypes import BF16, BY_NAME, BYTES, Datatype
from inferd_protocol.grpc_service_pb2 import ModelInferResponse
from inferd_protocol.tensors import Tensor, TensorError, bf16_values, decode_raw

from inferd_client.errors import BadResponse
from inferd_client.wire import RAW_OUTPUT_CONTENTS, raw_prefix


@dataclass(frozen=True, slots=True, eq=False)
class InferResult(Mapping[str, Tensor]):
    """A mapping from output name to array, in the order of the answer.

    The arrays are views of the received bytes and therefore read-only: copy one to change it. Their dtypes are those of
    the model's outputs; BF16 comes as float32, BYTES as an object array of `bytes`.
    Two results are equal only if they are the same object: arrays have no single truth value to compare by.
    """

    outputs: Mapping[str, Tensor]
    model_name: str
    model_version: str
    id: str = ""

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.outputs[name]
        except KeyError:
            answered = ", ".join(f"'{output}'" for output in self.outputs)
            raise KeyError(f"no output '{name}': model '{self.model_name}' answered {answered}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def __contains__(self, name: object) -> bool:
        return name in self.outputs

    # Mapping compares by content, which raises for arrays.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Classification:
    """One of the best elements of a row: its value, its index in the row, and its label where the model has labels."""

    value: float
    index: int
    label: str = field(default="")


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor's place in an answer: `prefix` are the bytes that must lie right before `start`."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    prefix: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """An answer that was parsed before, less the elements of its tensors.

    An answer of `size` bytes that begins with `head` and has every buffer's prefix in its place is the same message
    but for those elements, so they can be read where they lie.
    """

    size: int
    head: bytes
    buffers: tuple[Buffer, ...]
    model_name: str
    model_version: str
    id: str

    def read(self, data: bytes) -> InferResult | None:
        """The result in `data`, None where it is laid out in another way."""
        if len(data) != self.size or not data.startswith(self.head):
            return None
        outputs = {}
        for buffer in self.buffers:
            if not data.startswith(buffer.prefix, buffer.start - len(buffer.prefix)):
                return None
            # Sliced, not viewed in place, where elements would not lie on their natural boundaries.
            array = np.ndarray(buffer.shape, buffer.datatype.numpy, data[buffer.start : buffer.end])
            outputs[buffer.name] = bf16_values(array) if buffer.datatype is BF16 else array
        return InferResult(outputs, self.model_name, self.model_version, self.id)


def parse_infer(data: bytes) -> tuple[InferResult, Layout | None]:
    """A serialised ModelInferResponse, and its layout where it has one that other answers can share.

    Raises BadResponse for bytes that are none, and where outputs and buffers do not agree.
    """
    try:
        message = ModelInferResponse.FromString(data)
    except DecodeError as error:
        raise BadResponse(f"the answer to ModelInfer is not one: {error}") from error
    raw = list(message.raw_output_contents)
    if len(raw) != len(message.outputs):
        raise BadResponse(
            f"model '{message.model_name}' answered {len(message.outputs)} outputs with {len(raw)} raw buffers"
        )
    outputs: dict[str, Tensor] = {}
    buffers: list[Buffer] = []
    start = len(data) - sum(len(raw_prefix(RAW_OUTPUT_CONTENTS, len(bytes_))) + len(bytes_) for bytes_ in raw)
    head_size = start
    for output, elements in zip(message.outputs, raw, strict=True):
        datatype = BY_NAME.get(output.datatype)
        if datatype is None:
            raise BadResponse(f"output '{output.name}' has the unknown datatype {output.datatype}")
        shape = tuple(output.shape)
        try:
            array = decode_raw(output.name, datatype, shape, elements)
        except TensorError as error:
            raise BadResponse(f"model '{message.model_name}' answered a wrong output: {error}") from error
        outputs[output.name] = bf16_values(array) if datatype is BF16 else array
        prefix = raw_prefix(RAW_OUTPUT_CONTENTS, len(elements))
        start += len(prefix)
        buffers.append(Buffer(output.name, datatype, shape, prefix, start, start + len(elements)))
        start += len(elements)
    result = InferResult(outputs, message.model_name, message.model_version, message.id)
    if result.id or any(buffer.datatype is BYTES for buffer in buffers):
        return result, None  # an id is another one next time; BYTES have their elements' sizes among the elements
    layout = Layout(len(data), data[:head_size], tuple(buffers), result.model_name, result.model_version, result.id)
    # Fields may come in any order: the layout holds only where the buffers really are what the answer ends with.
    in_place = all(data[buffer.start : buffer.end] == elements for buffer, elements in zip(buffers, raw, strict=True))
    return result, layout if in_place and layout.read(data) is not None else None


def parse_classes(array: Tensor) -> list[list[Classification]]:
    """What the classification extension answers, an array of BYTES `value:index[:label]`, as a list a row, best first.

    Accepts shapes [rows, k] and [k]. Raises BadResponse for elements of another form.
    """
    return [[_parse_class(element) for element in row] for row in np.atleast_2d(array).tolist()]


def top_classes(array: npt.NDArray[np.generic], count: int) -> list[list[Classification]]:
    """The `count` largest elements of each row of a numeric array [rows, n] or [n], best first, without labels."""
    rows = np.atleast_2d(array)
    # Stable, so that of equal values the lower index comes first, as servers order them.
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    return [
        [Classification(row[index].item(), int(index)) for index in best] for row, best in zip(rows, order, strict=True)
    ]


def _parse_class(element: object) -> Classification:
    if not isinstance(element, bytes):
        raise BadResponse(f"a classification is BYTES 'value:index[:label]', got {element!r}")
    value, _, rest = element.decode(errors="replace").partition(":")
    index, _, label = rest.partition(":")
    try:
        return Classification(float(value), int(index), label)
    except ValueError as error:
        raise BadResponse(f"a classification is 'value:index[:label]', got {element!r}") from error
