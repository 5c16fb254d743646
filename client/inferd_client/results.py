"""An answer: arrays by output name, and which model and version gave them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from inferd_protocol import wire
from inferd_protocol.datatypes import BF16, BY_NAME, BYTES, Datatype
from inferd_protocol.grpc_service_pb2 import ModelInferResponse
from inferd_protocol.tensors import Tensor, TensorError, bf16_values, decode_raw

from inferd_client.errors import BadResponse

_RAW = ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER


# Not frozen: making a frozen one takes four times as long, a tenth of a small call's time in this library.
@dataclass(slots=True, eq=False)
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


class Buffer(NamedTuple):
    """A tensor's place in an answer, `start` to `end`, and the bytes that must lie at `before`.

    The first tensor has no such bytes, for the answer's head ends with them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    is_bf16: bool
    prefix: bytes
    before: int
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

    def read(self, data: bytes) -> InferResult | None:
        """The result in `data`, None where it is laid out in another way."""
        if len(data) != self.size or not data.startswith(self.head):
            return None
        outputs = {}
        for name, shape, dtype, is_bf16, prefix, before, start, end in self.buffers:
            if prefix and not data.startswith(prefix, before):
                return None
            # Sliced, not viewed in place, where elements would not lie on their natural boundaries.
            array: Tensor = np.ndarray(shape, dtype, data[start:end])
            outputs[name] = bf16_values(array) if is_bf16 else array
        return InferResult(outputs, self.model_name, self.model_version)


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
    datatypes: list[Datatype] = []
    for output, elements in zip(message.outputs, raw, strict=True):
        datatype = BY_NAME.get(output.datatype)
        if datatype is None:
            raise BadResponse(f"output '{output.name}' has the unknown datatype {output.datatype}")
        try:
            array = decode_raw(output.name, datatype, tuple(output.shape), elements)
        except TensorError as error:
            raise BadResponse(f"model '{message.model_name}' answered a wrong output: {error}") from error
        outputs[output.name] = bf16_values(array) if datatype is BF16 else array
        datatypes.append(datatype)
    return InferResult(outputs, message.model_name, message.model_version, message.id), _layout(
        data, message, raw, datatypes
    )


def _layout(
    data: bytes, message: ModelInferResponse, raw: Sequence[bytes], datatypes: Sequence[Datatype]
) -> Layout | None:
    """The layout of an answer, None where no other can be read by it."""
    if message.id or BYTES in datatypes:
        return None  # an id is another one next time; BYTES have their elements' sizes among the elements
    prefixes = [wire.prefix(_RAW, len(elements)) for elements in raw]
    size = sum(map(len, prefixes)) + sum(map(len, raw))
    head, body = data[: len(data) - size], data[len(data) - size :]
    # Fields may come in any order, so this holds only where the buffers are what the answer ends with. That the bytes
    # there are those of the buffers does not say so yet, for an unknown field may end with such bytes: the head must be
    # a message by itself, one without buffers.
    if body != b"".join(itertools.chain(*zip(prefixes, raw, strict=True))) or not _is_head(head):
        return None
    buffers: list[Buffer] = []
    before = len(head)
    for output, datatype, prefix, elements in zip(message.outputs, datatypes, prefixes, raw, strict=True):
        start = before + len(prefix)
        end = start + len(elements)
        checked = prefix if buffers else b""
        shape = tuple(output.shape)
        buffers.append(Buffer(output.name, shape, datatype.numpy, datatype is BF16, checked, before, start, end))
        before = end
    head = data[: buffers[0].start] if buffers else data
    return Layout(len(data), head, tuple(buffers), message.model_name, message.model_version)


def _is_head(data: bytes) -> bool:
    try:
        return not ModelInferResponse.FromString(data).raw_output_contents
    except DecodeError:
        return False


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
