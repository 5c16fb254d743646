"""The one part of the messages that is handled by hand: the raw buffers, in requests and in answers.

A protobuf message is a run of fields, so a request can be put together from parts that were serialised apart: a head
that stays the same from call to call (names, shapes, datatypes), a tail (id, parameters), and the tensors between
them. That saves building and serialising a message on every call, and a copy of each tensor. In an answer, in turn,
the buffers are found behind a head that is already known, without parsing it again.
"""

from __future__ import annotations

RAW_INPUT_CONTENTS = 7
"""The number of ModelInferRequest's field of raw buffers."""
RAW_OUTPUT_CONTENTS = 6
"""The number of ModelInferResponse's."""

_LENGTH_DELIMITED = 2


def varint(value: int) -> bytes:
    """A non-negative integer in base 128, the lowest seven bits first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def raw_prefix(field: int, size: int) -> bytes:
    """What comes before a buffer of `size` bytes in field number `field`."""
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(size)
