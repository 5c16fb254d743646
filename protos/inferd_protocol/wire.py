"""The outermost layer of protobuf's wire format: enough to find a message's fields without parsing them.

https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from typing import NamedTuple

_LENGTH_DELIMITED = 2
_WIRE_TYPE_BITS = 3
_VARINT_BITS = 7
_CONTINUED = 0x80
_LONGEST_VARINT = 10


class Field(NamedTuple):
    """A length-delimited field: where in the message its tag, its payload and the field after it begin."""

    number: int
    start: int
    payload: int
    end: int


def prefix(number: int, nbytes: int) -> bytes:
    """What stands before the `nbytes` bytes of payload of length-delimited field `number`: its tag and its length."""
    return _varint(number << _WIRE_TYPE_BITS | _LENGTH_DELIMITED) + _varint(nbytes)


def fields(message: bytes) -> list[Field] | None:
    """The fields of a message in the order they stand there.

    None where there are any but length-delimited ones, or the bytes are no message.
    """
    found = []
    position, end = 0, len(message)
    while position < end:
        start = position
        tag, position = _read_varint(message, position)
        length, position = _read_varint(message, position)
        if tag & ((1 << _WIRE_TYPE_BITS) - 1) != _LENGTH_DELIMITED or position < 0 or position + length > end:
            return None
        found.append(Field(tag >> _WIRE_TYPE_BITS, start, position, position + length))
        position += length
    return found


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= _CONTINUED:
        encoded.append(value & (_CONTINUED - 1) | _CONTINUED)
        value >>= _VARINT_BITS
    encoded.append(value)
    return bytes(encoded)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """A varint and the position after it, which is -1 where there is none."""
    value = 0
    if position < 0:
        return 0, -1
    for index, byte in enumerate(message[position : position + _LONGEST_VARINT]):
        value |= (byte & (_CONTINUED - 1)) << (_VARINT_BITS * index)
        if byte < _CONTINUED:
            return value, position + index + 1
    return 0, -1
