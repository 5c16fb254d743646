"""The request parameters that make a request a step of a sequence."""

from __future__ import annotations

from collections.abc import Mapping

from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.reasons import Parameter

from inferd_server.errors import InvalidRequest
from inferd_server.request import SequenceStep

_LONGEST_ID = 128
"""Bytes, as in Triton: ids are remembered longer than the requests that bring them."""


def sequence_step(parameters: Mapping[str, pb.InferParameter]) -> SequenceStep | None:
    """The step that the parameters ask for; None where there is no `sequence_id`, or it is 0 or empty.

    Raises InvalidRequest where one of them is of another type, or the first or last of no sequence is meant.
    """
    start = _flag(parameters, Parameter.SEQUENCE_START)
    end = _flag(parameters, Parameter.SEQUENCE_END)
    sequence_id = _id(parameters[Parameter.SEQUENCE_ID]) if Parameter.SEQUENCE_ID in parameters else 0
    if sequence_id:
        return SequenceStep(sequence_id, start, end)
    if start or end:
        name = Parameter.SEQUENCE_START if start else Parameter.SEQUENCE_END
        raise InvalidRequest(f"parameter '{name}' is expected beside a sequence_id that is not 0 or empty")
    return None


def _id(value: pb.InferParameter) -> int | str:
    match value.WhichOneof("parameter_choice"):
        case "int64_param" if value.int64_param >= 0:
            return value.int64_param
        case "int64_param":
            raise InvalidRequest(f"parameter 'sequence_id' is expected to be 0 or more, got {value.int64_param}")
        case "uint64_param":
            return value.uint64_param
        case "string_param":
            size = len(value.string_param.encode())
            if size > _LONGEST_ID:
                raise InvalidRequest(
                    f"parameter 'sequence_id' is expected to have at most {_LONGEST_ID} bytes, got {size}"
                )
            return value.string_param
        case other:
            raise InvalidRequest(
                f"parameter 'sequence_id' is expected to be an int64, uint64 or string, got {other or 'nothing'}"
            )


def _flag(parameters: Mapping[str, pb.InferParameter], name: Parameter) -> bool:
    if name not in parameters:
        return False
    value = parameters[name]
    kind = value.WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidRequest(f"parameter '{name}' is expected to be a bool, got {kind or 'nothing'}")
    return value.bool_param
