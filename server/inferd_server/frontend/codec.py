"""ModelInfer messages to requests, and answers to messages. The protobuf messages of inference stop here."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol import wire
from inferd_protocol.datatypes import BY_NAME, BYTES, Datatype
from inferd_protocol.reasons import Parameter
from inferd_protocol.tensors import Tensor, TensorError, check_raw_size, decode_contents, decode_raw, encode_raw

from inferd_server.errors import InvalidRequest, MalformedMessage, NotBuilt
from inferd_server.frontend.sequence_parameters import sequence_step
from inferd_server.request import AnswerForm, Content, RequestedOutput, RequestForm, SequenceStep, TensorForm

_RESPONSE_ID = pb.ModelInferResponse.ID_FIELD_NUMBER
_RAW_OUTPUT_CONTENTS = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_SHARED_MEMORY = (
    Parameter.SHARED_MEMORY_REGION,
    Parameter.SHARED_MEMORY_OFFSET,
    Parameter.SHARED_MEMORY_BYTE_SIZE,
)
_SCHEDULING_NOT_BUILT = {
    Parameter.PRIORITY: "priorities",
}


class DecodedMessage(NamedTuple):
    """A ModelInferRequest's parts."""

    form: RequestForm
    id: str
    contents: list[Content]
    step: SequenceStep | None = None
    """The request's place in a sequence, None where it is in none."""


def decode_message(message: bytes) -> DecodedMessage:
    """A ModelInferRequest's bytes as its form, id and contents.

    Raises MalformedMessage where they are no such message, InvalidRequest where it contradicts itself, NotBuilt where
    it uses a part of the protocol that this server does not have.
    """
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise MalformedMessage(f"the bytes received are no ModelInferRequest: {error}") from error
    inputs = tuple(TensorForm(field.name, _datatype(field), tuple(field.shape)) for field in request.inputs)
    try:
        contents = _contents(request, inputs)
    except TensorError as error:
        raise InvalidRequest(str(error)) from error
    step = sequence_step(request.parameters) if request.parameters else None
    form = RequestForm(
        model_name=request.model_name,
        model_version=request.model_version,
        inputs=inputs,
        outputs=tuple(_requested(output) for output in request.outputs),
        timeout_us=_timeout(request) if request.parameters else 0,
        in_sequence=step is not None,
    )
    return DecodedMessage(form, request.id, contents, step)


def encode_answer(form: AnswerForm, request_id: str, outputs: Sequence[Tensor]) -> bytes:
    """An answer as a ModelInferResponse's bytes: always raw, one buffer an output."""
    if form.has_text:
        return pb.ModelInferResponse(
            model_name=form.model_name,
            model_version=form.model_version,
            id=request_id,
            outputs=_described(form, [array.shape for array in outputs]),
            raw_output_contents=[
                encode_raw(array, datatype) for (_, datatype), array in zip(form.outputs, outputs, strict=True)
            ],
        ).SerializeToString()
    frame = _frame(form, tuple([array.shape for array in outputs]))
    head = frame.head
    if request_id:
        encoded = request_id.encode()
        head = b"".join((frame.before_id, wire.prefix(_RESPONSE_ID, len(encoded)), encoded, frame.after_id))
    if len(outputs) == 1:
        return b"".join((head, outputs[0].data))
    parts: list[bytes | memoryview] = [head]
    for prefix, array in zip(frame.prefixes, outputs, strict=True):
        parts += (prefix, array.data)
    return b"".join(parts)


class _Frame(NamedTuple):
    """What stands around the id and the outputs' elements in the bytes of an answer, whose last field they are."""

    before_id: bytes
    after_id: bytes
    head: bytes
    """Everything before the elements, without an id."""
    prefixes: tuple[bytes, ...]
    """What stands directly before each output's elements; nothing for the first, whose prefix the head ends with."""


@functools.lru_cache(maxsize=1024)
def _frame(form: AnswerForm, shapes: tuple[tuple[int, ...], ...]) -> _Frame:
    """The frame of answers of equal form and shapes: most of the work of encoding, done once for all of them."""
    prefixes = []
    for (_, datatype), shape in zip(form.outputs, shapes, strict=True):
        assert datatype.size is not None
        prefixes.append(wire.prefix(_RAW_OUTPUT_CONTENTS, math.prod(shape) * datatype.size))
    before_id = pb.ModelInferResponse(model_name=form.model_name, model_version=form.model_version).SerializeToString()
    after_id = pb.ModelInferResponse(outputs=_described(form, shapes)).SerializeToString() + b"".join(prefixes[:1])
    return _Frame(before_id, after_id, before_id + after_id, (b"", *prefixes[1:]))


def _described(form: AnswerForm, shapes: Sequence[tuple[int, ...]]) -> list[pb.ModelInferResponse.InferOutputTensor]:
    return [
        pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype.name, shape=shape)
        for (name, datatype), shape in zip(form.outputs, shapes, strict=True)
    ]


def _contents(request: pb.ModelInferRequest, inputs: Sequence[TensorForm]) -> list[Content]:
    buffers = request.raw_input_contents
    if not buffers:
        return [_typed(field, form) for field, form in zip(request.inputs, inputs, strict=True)]
    for field in request.inputs:
        if field.HasField("contents"):
            raise InvalidRequest(
                f"input '{field.name}' has typed contents beside raw_input_contents: expected one or the other"
            )
        _refuse_shared_memory(field)
    if len(buffers) < len(inputs):
        raise InvalidRequest(
            f"input '{inputs[len(buffers)].name}' has no buffer: raw_input_contents is expected to hold "
            f"{len(inputs)}, one an input, got {len(buffers)}"
        )
    if len(buffers) > len(inputs):
        raise InvalidRequest(
            f"raw_input_contents is expected to hold {len(inputs)} buffers, one an input, got {len(buffers)}"
        )
    return [_raw(form, buffer) for form, buffer in zip(inputs, buffers, strict=True)]


def _raw(form: TensorForm, buffer: bytes) -> Content:
    if form.datatype is BYTES:
        return decode_raw(form.name, form.datatype, form.shape, buffer)
    check_raw_size(form.name, form.datatype, form.shape, len(buffer))
    return memoryview(buffer)


def _typed(field: pb.ModelInferRequest.InferInputTensor, form: TensorForm) -> Content:
    _refuse_shared_memory(field)
    datatype = form.datatype
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
    return decode_contents(field.name, datatype, form.shape, getattr(field.contents, datatype.contents))


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
