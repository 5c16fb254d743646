"""What the parameters of a message and of its tensors say."""

from __future__ import annotations

from collections.abc import Iterable

from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.reasons import Parameter

from inferd_server.errors import InvalidRequest
from inferd_server.shared_memory.regions import Range

_SHARED_MEMORY = (
    Parameter.SHARED_MEMORY_REGION,
    Parameter.SHARED_MEMORY_OFFSET,
    Parameter.SHARED_MEMORY_BYTE_SIZE,
)


def integer(what: str, value: pb.InferParameter) -> int:
    """The whole number of a parameter that the caller would call `what`. Raises InvalidRequest."""
    match value.WhichOneof("parameter_choice"):
        case "int64_param":
            return value.int64_param
        case "uint64_param":
            return value.uint64_param
        case other:
            raise InvalidRequest(f"{what} is expected to be an int64, got {other or 'nothing'}")


def shared_ranges(
    fields: Iterable[pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor],
) -> tuple[Range | None, ...]:
    """The shared memory that each tensor names; empty where none does. Raises InvalidRequest."""
    ranges = tuple([_range(field) if field.parameters else None for field in fields])
    return ranges if any(ranges) else ()


def _range(
    field: pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor,
) -> Range | None:
    parameters = field.parameters
    named = [name for name in _SHARED_MEMORY if name in parameters]
    if not named:
        return None
    for name in (Parameter.SHARED_MEMORY_REGION, Parameter.SHARED_MEMORY_BYTE_SIZE):
        if name not in named:
            raise InvalidRequest(f"tensor '{field.name}' has parameter {named[0]} without {name}: expected both")
    region = parameters[Parameter.SHARED_MEMORY_REGION]
    if not region.string_param:
        raise InvalidRequest(f"{Parameter.SHARED_MEMORY_REGION} of tensor '{field.name}' is expected to be a name")
    sizes = []
    for name in (Parameter.SHARED_MEMORY_OFFSET, Parameter.SHARED_MEMORY_BYTE_SIZE):
        size = integer(f"{name} of tensor '{field.name}'", parameters[name]) if name in named else 0
        if size < 0:
            raise InvalidRequest(f"{name} of tensor '{field.name}' is expected to be 0 or more, got {size}")
        sizes.append(size)
    return Range(region.string_param, *sizes)
