"""The files that an ONNX file keeps weights in: which they are, and that it may read them.

A protobuf message ends at 2 GB, so large weights lie in files beside the model, and each tensor says where
(TensorProto.external_data, field 13: the keys `location`, `offset`, `length`). Whoever wrote a model is not trusted: a
location could name any file of the machine, which the runtime would open. So this reads the locations before the
runtime sees the model, from protobuf's wire format and without the `onnx` package, which a server lacks.

The field numbers are those of onnx.proto. The file is read and never mapped: somebody may cut it short meanwhile, which
a mapping answers with a signal that ends the process. Bytes of weights are stepped over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

MOST_FIELDS = 5_000_000
"""That are looked at in one model: the largest that are known have a tenth of it, and it takes a few seconds."""

_MOST_DEPTH = 100
"""Messages within messages, protobuf's own limit."""

_MOST_SIZE = 2**63 - 1

_WINDOW_BYTES = 1 << 12
_SEARCH_BYTES = 1 << 20

_ADDRESS_MARKS = ("_ORT_MEM_ADDR_",)
"""A location of ONNX Runtime's own, `*/_ORT_MEM_ADDR_/*`, makes the offset an address in the process's memory."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class ExternalDataError(ValueError):
    """A model whose weights' files cannot be used: the message says which, and what was expected."""


# Which fields of a message hold messages that may hold tensors.
_MESSAGES = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}


@dataclass(slots=True)
class _Tensor:
    name: str = ""
    entries: list[tuple[str, str]] = field(default_factory=list)


def data_files(model: Path) -> tuple[str, ...]:
    """The files that the ONNX file `model` keeps weights in, as paths below its folder, each once, in order.

    Raises ExternalDataError for a location that is absolute, leaves the folder (by `..` or by a link) or names what is
    no file, for a file that is shorter than the model says, and for bytes that are no ONNX file where they speak of
    other files; OSError where the model cannot be read.
    """
    found: dict[str, int] = {}
    for tensor in _external(model):
        location, end = _place(tensor)
        found[location] = max(end, found.get(location, 0))
    for location, end in found.items():
        _check(model.parent, location, end)
    return tuple(sorted(found))


def _external(model: Path) -> Iterator[_Tensor]:
    """The tensors of a model that lie in other files."""
    with model.open("rb", buffering=0) as stream:
        content = _Content(stream.fileno())
        # Without this key there is nothing to look at: most models are done here.
        if content.has(b"location"):
            yield from _Walk(content).tensors()


class _Content:
    """The bytes of an open file, read a window at a time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size
        self._window = b""
        self._start = 0

    def __len__(self) -> int:
        return self._size

    def has(self, word: bytes) -> bool:
        """Whether the file holds a word."""
        position, kept = 0, b""
        while block := os.pread(self._descriptor, _SEARCH_BYTES, position):
            if word in kept + block:
                return True
            kept = block[1 - len(word) :]
            position += len(block)
        return False

    def byte(self, position: int) -> int:
        """One byte. Raises ExternalDataError where the file has become shorter."""
        place = position - self._start
        if not 0 <= place < len(self._window):
            self._window, self._start, place = self.piece(position, _WINDOW_BYTES), position, 0
        return self._window[place]

    def piece(self, start: int, size: int) -> bytes:
        """Up to `size` bytes; at least one."""
        found = os.pread(self._descriptor, size, start)
        if not found:
            raise ExternalDataError("it is no whole ONNX file")
        return found


class _Walk:
    """One pass over a file's fields."""

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._left = MOST_FIELDS

    def tensors(self) -> Iterator[_Tensor]:
        """The tensors that have entries of external data, wherever in the model they stand."""
        return self._within("Model", 0, len(self._content), 0)

    def _within(self, kind: str, start: int, end: int, depth: int) -> Iterator[_Tensor]:
        if depth > _MOST_DEPTH:
            raise ExternalDataError(f"its messages lie more than {_MOST_DEPTH} deep in each other")
        if kind == "Tensor":
            # Whatever its data_location says: what is named is checked.
            tensor = self._tensor(start, end)
            if tensor.entries:
                yield tensor
            return
        inner = _MESSAGES[kind]
        for number, wire, first, last in self._fields(start, end):
            if wire == _BYTES and number in inner:
                yield from self._within(inner[number], first, last, depth + 1)

    def _tensor(self, start: int, end: int) -> _Tensor:
        tensor = _Tensor()
        for number, wire, first, last in self._fields(start, end):
            if wire != _BYTES:
                continue
            if number == 8:
                tensor.name = self._text(first, last)
            elif number == 13:
                tensor.entries.append(self._entry(first, last))
        return tensor

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for number, wire, first, last in self._fields(start, end):
            if wire == _BYTES and number in texts:
                texts[number] = self._text(first, last)
        return texts[1], texts[2]

    def _text(self, start: int, end: int) -> str:
        if end - start > 4096:
            raise ExternalDataError(f"it has a name of {end - start} bytes, where at most 4096 were expected")
        if start == end:
            return ""
        content = self._content.piece(start, end - start)
        if len(content) < end - start:
            raise ExternalDataError("it is no whole ONNX file")
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise ExternalDataError("it has a name that is no UTF-8 text") from None

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Number, wire type, and where the content lies, of each field of a message."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise ExternalDataError(f"it has more than {MOST_FIELDS} fields")
            tag, position = self._varint(position, end)
            # Protobuf's readers keep 32 bits of a tag, so what they would read is what is looked at.
            tag &= 0xFFFFFFFF
            number, wire = tag >> 3, tag & 7
            first = position
            if wire == _VARINT:
                _, position = self._varint(position, end)
            elif wire == _BYTES:
                size, first = self._varint(position, end)
                position = first + size
            elif wire in (_FIXED64, _FIXED32):
                position += 8 if wire == _FIXED64 else 4
            else:
                # Groups: ONNX has none, and nothing writes them.
                raise ExternalDataError("it is no ONNX file")
            if position > end:
                raise ExternalDataError("it is no whole ONNX file")
            yield number, wire, first, position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                break
            byte = self._content.byte(position)
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise ExternalDataError("it is no whole ONNX file")


def _place(tensor: _Tensor) -> tuple[str, int]:
    """The file of a tensor, and how many bytes that must have at least."""
    values: dict[str, str] = {}
    for key, value in tensor.entries:
        if key in values:
            raise ExternalDataError(f"tensor '{tensor.name}' gives its {key!r} twice")
        values[key] = value
    location = values.get("location", "")
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or ".." in parts or "\0" in location or set(parts) & set(_ADDRESS_MARKS):
        raise ExternalDataError(
            f"tensor '{tensor.name}' lies in {location!r}, expected a file below the model's own folder"
        )
    offset, length = (_number(tensor, values, key) for key in ("offset", "length"))
    return str(PurePosixPath(location)), offset + length


def _number(tensor: _Tensor, values: dict[str, str], key: str) -> int:
    text = values.get(key, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= _MOST_SIZE):
        raise ExternalDataError(f"tensor '{tensor.name}' has the {key} {text!r}, expected a whole number from 0")
    return int(text)


def _check(folder: Path, location: str, end: int) -> None:
    path = folder / location
    try:
        inside = path.resolve(strict=True).is_relative_to(folder.resolve(strict=True))
        status = path.stat()
    except FileNotFoundError:
        raise ExternalDataError(f"its weights lie in '{location}', which is missing beside it") from None
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise ExternalDataError(f"its weights lie in '{location}', which cannot be read: {why}") from error
    if not inside:
        raise ExternalDataError(f"its weights lie in '{location}', a link that leaves the model's folder")
    if not stat.S_ISREG(status.st_mode):
        raise ExternalDataError(f"its weights lie in '{location}', which is no file")
    if status.st_size < end:
        raise ExternalDataError(
            f"its weights lie in '{location}', which has {status.st_size} bytes, expected at least {end}: it is cut off"
        )
