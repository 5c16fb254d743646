"""Tensors to bytes and back: pure functions, no copies where the layout allows.

Raw buffers are row-major and little-endian. An element of BYTES is a 4-byte little-endian length and its bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from inferd_protocol.datatypes import BYTES, Datatype

Tensor: TypeAlias = npt.NDArray[np.generic]
Buffer: TypeAlias = bytes | bytearray | memoryview

_LENGTH = struct.Struct("<I")

_CONTENTS = {
    "bool_contents": np.dtype(bool),
    "int_contents": np.dtype(np.int32),
    "int64_contents": np.dtype(np.int64),
    "uint_contents": np.dtype(np.uint32),
    "uint64_contents": np.dtype(np.uint64),
    "fp32_contents": np.dtype(np.float32),
    "fp64_contents": np.dtype(np.float64),
}
"""What the fields of InferTensorContents hold; narrower datatypes share the field of the next wider one."""


class TensorError(ValueError):
    """A tensor whose bytes, elements and shape do not agree: the message names it, what was expected and what came."""


def element_count(name: str, shape: Sequence[int]) -> int:
    """The number of elements of `shape`.

    Raises TensorError for a negative dimension.
    """
    if any(dim < 0 for dim in shape):
        raise TensorError(f"tensor '{name}' has shape {list(shape)}: expected no negative dimension")
    return math.prod(shape)


def decode_raw(name: str, datatype: Datatype, shape: Sequence[int], buffer: Buffer) -> Tensor:
    """A raw buffer as an array of `shape` and `datatype.numpy`: a read-only view of the buffer, except for BYTES.

    Raises TensorError where the buffer's size is not that of the shape.
    """
    count = element_count(name, shape)
    if datatype.size is None:
        return _objects(_split_bytes(name, buffer, count), shape)
    check_raw_size(name, datatype, shape, len(buffer))
    if count == 0:
        return np.empty(shape, datatype.numpy)
    return np.frombuffer(buffer, datatype.numpy).reshape(shape)


def check_raw_size(name: str, datatype: Datatype, shape: Sequence[int], nbytes: int) -> None:
    """Holds the size of a raw buffer, of any datatype but BYTES, against the shape.

    Raises TensorError where it is not that of the shape, or the shape has a negative dimension.
    """
    assert datatype.size is not None
    expected = element_count(name, shape) * datatype.size
    if nbytes != expected:
        raise TensorError(
            f"tensor '{name}' of datatype {datatype.name} and shape {list(shape)} "
            f"expects {expected} bytes, got {nbytes}"
        )


def decode_contents(name: str, datatype: Datatype, shape: Sequence[int], elements: Sequence[object]) -> Tensor:
    """The elements of a typed `contents` field as an array of `shape` and `datatype.numpy`.

    Raises TensorError where the number of elements is not that of the shape, or a value does not fit the datatype.
    """
    count = element_count(name, shape)
    if len(elements) != count:
        raise TensorError(
            f"tensor '{name}' of shape {list(shape)} expects {count} elements in "
            f"contents.{datatype.contents}, got {len(elements)}"
        )
    if datatype.contents is None:
        raise TensorError(f"tensor '{name}' of datatype {datatype.name} has no typed contents: send it raw")
    if datatype is BYTES:
        return _objects(list(elements), shape)
    wide = np.array(elements, _CONTENTS[datatype.contents])
    array = wide.astype(datatype.numpy)
    if datatype.numpy.kind in "iu" and not np.array_equal(wide, array):
        raise TensorError(f"tensor '{name}' has values in contents.{datatype.contents} that do not fit {datatype.name}")
    return array.reshape(shape)


def encode_raw(array: Tensor, datatype: Datatype) -> bytes:
    """The raw buffer of an array of `datatype.numpy` (for BYTES, of bytes or str)."""
    if datatype is BYTES:
        return _join_bytes(array)
    return np.ascontiguousarray(array, datatype.numpy).tobytes()


def bf16_bits(array: Tensor) -> npt.NDArray[np.uint16]:
    """Floats to BF16, as its bits: rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding may carry a NaN's mantissa into infinity or past the sign: keep its top bits and set the quiet bit.
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def bf16_values(bits: Tensor) -> npt.NDArray[np.float32]:
    """BF16 bits to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _split_bytes(name: str, buffer: Buffer, count: int) -> list[object]:
    view = memoryview(buffer)
    elements: list[object] = []
    offset, end = 0, len(view)
    while offset < end:
        start = offset + _LENGTH.size
        if start > end:
            raise TensorError(f"tensor '{name}': element {len(elements)} has {end - offset} of its 4 length bytes")
        (length,) = _LENGTH.unpack_from(view, offset)
        offset = start + length
        if offset > end:
            raise TensorError(
                f"tensor '{name}': element {len(elements)} expects {length} bytes after its length, got {end - start}"
            )
        elements.append(bytes(view[start:offset]))
        if len(elements) > count:
            break
    if len(elements) != count:
        more = "more" if len(elements) > count else str(len(elements))
        raise TensorError(f"tensor '{name}' of datatype BYTES expects {count} elements, got {more}")
    return elements


def _join_bytes(array: Tensor) -> bytes:
    parts: list[bytes] = []
    for element in array.reshape(-1).tolist():
        data = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def _objects(elements: list[object], shape: Sequence[int]) -> Tensor:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


__all__ = [
    "Buffer",
    "Tensor",
    "TensorError",
    "bf16_bits",
    "bf16_values",
    "check_raw_size",
    "decode_contents",
    "decode_raw",
    "element_count",
    "encode_raw",
]
