"""The IDX format of the MNIST family: big-endian header, then unsigned bytes.

The magic number's third byte is the element type (8: unsigned byte), the fourth the number of dimensions
(http://yann.lecun.com/exdb/mnist, "the IDX file format").
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inferd_training.errors import DataError

IMAGES_MAGIC = 0x00000803
LABELS_MAGIC = 0x00000801
_KINDS = {IMAGES_MAGIC: "images", LABELS_MAGIC: "labels"}
_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path) -> bytes:
    """The content of `path`, decompressed where it is gzip, which is told by its content, not its name.

    Raises DataError where the file cannot be read or the compressed stream is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return decompress(content, str(path))


def decompress(content: bytes, name: str) -> bytes:
    """`content`, decompressed where it is gzip; `name` is for messages. Raises DataError for a damaged stream."""
    if not content.startswith(_GZIP_MAGIC):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{name} is a damaged gzip file ({error}): fetch it again") from error


def parse_images(content: bytes, name: str, size: tuple[int, int] = (28, 28)) -> NDArray[np.uint8]:
    """The images of an IDX file: uint8 [count, height, width], read-only; `name` is for messages.

    Raises DataError for another magic number, another image size than `size`, or a length that differs from the header.
    """
    count, height, width = _header(content, IMAGES_MAGIC, name)
    if (height, width) != size:
        raise DataError(
            f"{name} holds images of {height}x{width} pixels where {size[0]}x{size[1]} were expected: resize them first"
        )
    return _body(content, (count, height, width), name)


def parse_labels(content: bytes, name: str, classes: int) -> NDArray[np.uint8]:
    """The labels of an IDX file: uint8 [count], read-only, each below `classes`; `name` is for messages.

    Raises DataError for another magic number, a length that differs from the header, or a label out of range.
    """
    (count,) = _header(content, LABELS_MAGIC, name)
    labels = _body(content, (count,), name)
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        raise DataError(
            f"{name} holds the label {labels[wrong[0]]} at position {wrong[0]} where 0 to {classes - 1} were expected: "
            "correct the file"
        )
    return labels


def encode(array: NDArray[np.uint8]) -> bytes:
    """An array as an IDX file: uint8 of one dimension (labels) or three (images)."""
    header = struct.pack(f">I{array.ndim}I", 0x00000800 | array.ndim, *array.shape)
    return header + array.astype(np.uint8, copy=False).tobytes()


def _header(content: bytes, magic: int, name: str) -> tuple[int, ...]:
    dimensions = magic & 0xFF
    length = 4 * (1 + dimensions)
    if len(content) >= 4:
        (found,) = struct.unpack_from(">I", content)
        if found != magic:
            kind = _KINDS.get(found)
            came = f"an IDX file of {kind}" if kind else f"the magic number 0x{found:08x}"
            advice = "are the files swapped?" if kind else "is it an IDX file?"
            raise DataError(
                f"{name} was expected to be an IDX file of {_KINDS[magic]} (0x{magic:08x}) but holds {came}: {advice}"
            )
    if len(content) < length:
        raise DataError(f"{name} ends within its header ({len(content)} of {length} bytes): fetch it again")
    return struct.unpack_from(f">{dimensions}I", content, 4)


def _body(content: bytes, shape: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    offset = 4 * (1 + len(shape))
    expected = 1
    for extent in shape:
        expected *= extent
    if shape[0] == 0:
        raise DataError(f"{name} holds no entries: at least one was expected")
    if len(content) - offset != expected:
        fault = "truncated" if len(content) - offset < expected else "too long"
        raise DataError(
            f"{name} is {fault}: its header announces {expected} bytes after it, {len(content) - offset} came: "
            "fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)
