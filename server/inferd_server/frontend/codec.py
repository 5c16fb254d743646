"""ModelInfer messages to requests, and answers to messages. The protobuf messages of inference stop here."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.datatypes import BY_NAME, Datatype
from inferd_protocol.reasons import Parameter
from inferd_protocol.tensors import TensorError, decode_contents, decode_raw, encode_raw

from inferd_server.errors import InvalidRequest, MalformedMessage, NotBuilt
from inferd_server.request import InferenceAnswer, InferenceRequest, NamedTensor, RequestedOutput

_SHARED_MEMORY = (
    Parameter.SHARED_MEMORY_REGION,
    Parameter.SHARED_MEMORY_OFFSET,
    Parameter.SHARED_MEMORY_BYTE_SIZE,
)
_SCHEDULING_NOT_BUILT = {
    Parameter.SEQUENCE_ID: "sequences",
    Parameter.SEQUENCE_START: "sequences",
    Parameter.SEQUENCE_END: "sequences",
    Parameter.PRIORITY: "priorities",
}


def decode_request(message: bytes) -> InferenceRequest:
    """A ModelInferRequest's bytes as a request; raw tensors are views of them.

    Raises MalformedMessage where they are no such message, InvalidRequest where it contradicts itself, NotBuilt where
    it uses a part of the protocol that this server does not have.
    """
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise MalformedMessage(f"the bytes received are no ModelInferRequest: {error}") from error
    try:
        inputs = _inputs(request)
    except TensorError as error:
        raise InvalidRequest(str(error)) from error
    return InferenceRequest(
        model_name=request.model_name,
        model_version=request.model_version,
        id=request.id,
        inputs=inputs,
        outputs=[_requested(output) for output in request.outputs],
        nbytes=len(message),
        timeout_us=_timeout(request) if request.parameters else 0,
    )


def encode_answer(answer: InferenceAnswer) -> bytes:
    """An answer as a ModelInferResponse's bytes: always raw, one buffer an output."""
    response = pb.ModelInferResponse(
        model_name=answer.model_name,
        model_version=answer.model_version,
        id=answer.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=tensor.name, datatype=tensor.datatype.name, shape=tensor.array.shape
            )
            for tensor in answer.outputs
        ],
        raw_output_contents=[encode_raw(tensor.array, tensor.datatype) for tensor in answer.outputs],
    )
    return response.SerializeToString()


def _inputs(request: pb.ModelInferRequest) -> Sequence[NamedTensor]:
    buffers = request.raw_input_contents
    if not buffers:
        return [_typed_input(field) for field in request.inputs]
    for field in request.inputs:
        if field.HasField("contents"):
            raise InvalidRequest(
                f"input '{field.name}' has typed contents beside raw_input_contents: expected one or the other"
            )
        _refuse_shared_memory(field)
    if len(buffers) < len(request.inputs):
        raise InvalidRequest(
            f"input '{request.inputs[len(buffers)].name}' has no buffer: raw_input_contents is expected to hold "
            f"{len(request.inputs)}, one an input, got {len(buffers)}"
        )
    if len(buffers) > len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents is expected to hold {len(request.inputs)} buffers, one an input, got {len(buffers)}"
        )
    return [
        NamedTensor(field.name, datatype := _datatype(field), decode_raw(field.name, datatype, field.shape, buffer))
        for field, buffer in zip(request.inputs, buffers, strict=True)
    ]


def _typed_input(field: pb.ModelInferRequest.InferInputTensor) -> NamedTensor:
    _refuse_shared_memory(field)
    datatype = _datatype(field)
    present = [descriptor.name for descriptor, _ in field.contents.ListFields()]
    if datatype.contents is None:
        raise InvalidRequest(
            f"input '{field.name}' of datatype {datatype.name} is expected in raw_input_contents: "
            "the protocol has no typed contents for it"
        )
    if any(name != datatype.contents for name in present):
        raise InvalidRequest(
            f"input '{field.name}' of datatype {datatype.name} is expected in contents.{datatype.contents}, "
            f"got contents.{', contents.'.join(present)}"
        )
    array = decode_contents(field.name, datatype, field.shape, getattr(field.contents, datatype.contents))
    return NamedTensor(field.name, datatype, array)


def _datatype(field: pb.ModelInferRequest.InferInputTensor) -> Datatype:
    datatype = BY_NAME.get(field.datatype)
    if datatype is None:
        raise InvalidRequest(
            f"input '{field.name}' has datatype '{field.datatype}': expected one of {', '.join(BY_NAME)}"
        )
    return datatype


def _refuse_shared_memory(
    field: pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor,
) -> None:
    if field.parameters and any(name in field.parameters for name in _SHARED_MEMORY):
        raise NotBuilt(
            f"tensor '{field.name}' is in shared memory, which this server does not have: send it in the message"
        )


def _requested(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> RequestedOutput:
    _refuse_shared_memory(output)
    if Parameter.CLASSIFICATION not in output.parameters:
        return RequestedOutput(output.name)
    value = output.parameters[Parameter.CLASSIFICATION]
    count = _integer(f"classification of output '{output.name}'", value)
    if count < 1:
        raise InvalidRequest(f"classification of output '{output.name}' is expected to be 1 or more, got {count}")
    return RequestedOutput(output.name, count)


def _timeout(request: pb.ModelInferRequest) -> int:
    for name, feature in _SCHEDULING_NOT_BUILT.items():
        if name in request.parameters:
            raise NotBuilt(f"parameter '{name}' asks for {feature}, which this server does not have: leave it out")
    if Parameter.TIMEOUT not in request.parameters:
        return 0
    timeout = _integer("parameter 'timeout'", request.parameters[Parameter.TIMEOUT])
    if timeout < 0:
        raise InvalidRequest(f"parameter 'timeout' is expected to be microseconds, 0 or more, got {timeout}")
    return timeout


def _integer(what: str, value: pb.InferParameter) -> int:
    match value.WhichOneof("parameter_choice"):
        case "int64_param":
            return value.int64_param
        case "uint64_param":
            return value.uint64_param
        case other:
            raise InvalidRequest(f"{what} is expected to be an int64, got {other or 'nothing'}")
