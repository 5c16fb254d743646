"""The one part of a request that is encoded by hand: its raw buffers, field 7 of ModelInferRequest.

A protobuf message is a run of fields, so a request can be put together from parts that were serialised apart: a head
that stays the same from call to call (names, shapes, datatypes), a tail (id, parameters), and the tensors between
them. That saves building and serialising a message on every call, and a copy of each tensor.
"""

from __future__ import annotations

_RAW_INPUT_CONTENTS = bytes([7 << 3 | 2])
"""The tag of field 7 with a length-delimited value."""


def varint(value: int) -> bytes:
    """A non-negative integer in base 128, the lowest seven bits first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def raw_prefix(size: int) -> bytes:
    """What comes before a raw buffer of `size` bytes."""
    return _RAW_INPUT_CONTENTS + varint(size)
