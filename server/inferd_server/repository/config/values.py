"""Values that more than one part of a config.pbtxt has."""

from __future__ import annotations

from inferd_protocol import model_config_pb2 as pb
from inferd_protocol.datatypes import BY_CONFIG

from inferd_server.errors import LoadError


def data_type(what: str, number: int) -> str:
    """The name of a DataType, `TYPE_FP32` for instance. `what` has it, in an error's words.

    Raises LoadError where it is none that tensors have.
    """
    known = pb.DataType.values()
    name = pb.DataType.Name(pb.DataType.ValueType(number)) if number in known else str(number)
    if name not in BY_CONFIG:
        raise LoadError(f"{what} data_type {name}: expected one of {', '.join(BY_CONFIG)}")
    return name
