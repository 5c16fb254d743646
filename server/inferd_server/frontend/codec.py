"""ModelInfer messages to requests, and answers to messages. The protobuf messages of inference stop here."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol import wire
from inferd_protocol.datatypes import BY_NAME, BYTES, Datatype
from inferd_protocol.reasons import Parameter
from inferd_protocol.tensors import Tensor, TensorError, check_raw_size, decode_contents, decode_raw, encode_raw

from inferd_server.errors import InvalidRequest, MalformedMessage
from inferd_server.frontend.parameters import integer, shared_ranges
from inferd_server.frontend.sequence_parameters import sequence_step
from inferd_server.request import AnswerForm, Content, RequestedOutput, RequestForm, SequenceStep, TensorForm
from inferd_server.shared_memory.regions import NO_REGIONS, Range, Regions, Window

_RESPONSE_ID = pb.ModelInferResponse.ID_FIELD_NUMBER
_RAW_OUTPUT_CONTENTS = pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_LOWEST_PRIORITY = 2**32 - 1


class DecodedMessage(NamedTuple):
    """A ModelInferRequest's parts."""

    form: RequestForm
    id: str
    contents: list[Content]
    inputs_in: tuple[Range | None, ...] = ()
    """The shared memory that each input is in; empty where all are in the message."""
    outputs_in: tuple[Range | None, ...] = ()
    """The shared memory that each requested output is to be written to; empty where all go into the answer."""
    step: SequenceStep | None = None
    """The request's place in a sequence, None where it is in none."""


def decode_message(message: bytes, regions: Regions = NO_REGIONS) -> DecodedMessage:
    """A ModelInferRequest's bytes as its form, id and contents.

    Raises MalformedMessage where they are no such message, InvalidRequest where it contradicts itself,
    RegionNotFound where an input is in shared memory that is not registered.
    """
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise MalformedMessage(f"the bytes received are no ModelInferRequest: {error}") from error
    inputs = tuple(TensorForm(field.name, _datatype(field), tuple(field.shape)) for field in request.inputs)
    try:
        inputs_in = shared_ranges(request.inputs)
        contents = _contents(request, inputs, inputs_in, regions)
    except TensorError as error:
        raise InvalidRequest(str(error)) from error
    outputs_in = shared_ranges(request.outputs)
    outputs = tuple(map(_requested, request.outputs))
    step = sequence_step(request.parameters) if request.parameters else None
    form = RequestForm(
        model_name=request.model_name,
        model_version=request.model_version,
        inputs=inputs,
        outputs=tuple(map(_in_shared_memory, outputs, outputs_in)) if outputs_in else outputs,
        timeout_us=_timeout(request) if request.parameters else 0,
        priority=_priority(request) if request.parameters else 0,
        in_sequence=step is not None,
    )
    return DecodedMessage(form, request.id, contents, inputs_in, outputs_in, step)


def encode_answer(form: AnswerForm, request_id: str, outputs: Sequence[Tensor]) -> bytes:
    """An answer as a ModelInferResponse's bytes: always raw, one buffer an output.

    An output that goes to shared memory is written there and has an empty buffer, since clients find the buffer of an
    output by its place. Raises InvalidRequest where one does not fit there, and then none is written.
    """
    if not form.plain:
        return _encode_any(form, request_id, outputs)
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


def _encode_any(form: AnswerForm, request_id: str, outputs: Sequence[Tensor]) -> bytes:
    """As `encode_answer`, for every form, field by field."""
    described = _described(form, [array.shape for array in outputs])
    encoded: list[bytes] = []
    to_write: list[tuple[Window, memoryview]] = []
    places = form.places or (None,) * len(outputs)
    for (name, datatype), array, place, field in zip(form.outputs, outputs, places, described, strict=True):
        if place is None:
            encoded.append(encode_raw(array, datatype))
            continue
        data = memoryview(encode_raw(array, datatype)) if datatype is BYTES else np.ascontiguousarray(array).data
        nbytes = data.nbytes
        if nbytes > place.nbytes:
            raise InvalidRequest(
                f"output '{name}' has {nbytes} bytes, and {place.nbytes} bytes of shared memory region "
                f"'{place.region}' are given for it: expected at least as many"
            )
        encoded.append(b"")
        to_write.append((place, data))
        field.parameters[Parameter.SHARED_MEMORY_REGION].string_param = place.region
        field.parameters[Parameter.SHARED_MEMORY_OFFSET].int64_param = place.offset
        field.parameters[Parameter.SHARED_MEMORY_BYTE_SIZE].int64_param = nbytes
    for window, data in to_write:
        window.write(data)
    return pb.ModelInferResponse(
        model_name=form.model_name,
        model_version=form.model_version,
        id=request_id,
        outputs=described,
        raw_output_contents=encoded,
    ).SerializeToString()


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


def _contents(
    request: pb.ModelInferRequest, inputs: Sequence[TensorForm], inputs_in: Sequence[Range | None], regions: Regions
) -> list[Content]:
    fields, buffers = request.inputs, request.raw_input_contents
    if not inputs_in:
        return _sent(fields, inputs, buffers)
    for field, place in zip(fields, inputs_in, strict=True):
        if place is not None and field.HasField("contents"):
            raise InvalidRequest(f"input '{field.name}' has typed contents and is in shared memory: expected only one")
    # Inputs in shared memory have no place among the raw contents.
    sent = iter(
        _sent(
            [field for field, place in zip(fields, inputs_in, strict=True) if place is None],
            [form for form, place in zip(inputs, inputs_in, strict=True) if place is None],
            buffers,
            " that is not in shared memory",
        )
    )
    return [
        next(sent) if place is None else _shared(form, place, regions)
        for form, place in zip(inputs, inputs_in, strict=True)
    ]


def _sent(
    fields: Sequence[pb.ModelInferRequest.InferInputTensor],
    inputs: Sequence[TensorForm],
    buffers: Sequence[bytes],
    which: str = "",
) -> list[Content]:
    """The contents that came in the message; `which` says of which inputs they are."""
    if not buffers:
        return [_typed(field, form) for field, form in zip(fields, inputs, strict=True)]
    for field in fields:
        if field.HasField("contents"):
            raise InvalidRequest(
                f"input '{field.name}' has typed contents beside raw_input_contents: expected one or the other"
            )
    if len(buffers) < len(inputs):
        raise InvalidRequest(
            f"input '{inputs[len(buffers)].name}' has no buffer: raw_input_contents is expected to hold "
            f"{len(inputs)}, one an input{which}, got {len(buffers)}"
        )
    if len(buffers) > len(inputs):
        raise InvalidRequest(
            f"raw_input_contents is expected to hold {len(inputs)} buffers, one an input{which}, got {len(buffers)}"
        )
    return [_raw(form, buffer) for form, buffer in zip(inputs, buffers, strict=True)]


def _shared(form: TensorForm, place: Range, regions: Regions) -> Content:
    window = regions.window(form.name, place)
    if form.datatype is BYTES:
        return decode_raw(form.name, form.datatype, form.shape, window.read())
    check_raw_size(form.name, form.datatype, form.shape, window.nbytes)
    return window


def _raw(form: TensorForm, buffer: bytes) -> Content:
    if form.datatype is BYTES:
        return decode_raw(form.name, form.datatype, form.shape, buffer)
    check_raw_size(form.name, form.datatype, form.shape, len(buffer))
    return memoryview(buffer)


def _typed(field: pb.ModelInferRequest.InferInputTensor, form: TensorForm) -> Content:
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


def _in_shared_memory(output: RequestedOutput, place: Range | None) -> RequestedOutput:
    if place is None:
        return output
    if output.classification:
        raise InvalidRequest(
            f"output '{output.name}' has parameters classification and shared_memory_region: expected only one"
        )
    return replace(output, in_shared_memory=True)


def _requested(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> RequestedOutput:
    if Parameter.CLASSIFICATION not in output.parameters:
        return RequestedOutput(output.name)
    value = output.parameters[Parameter.CLASSIFICATION]
    count = integer(f"classification of output '{output.name}'", value)
    if count < 1:
        raise InvalidRequest(f"classification of output '{output.name}' is expected to be 1 or more, got {count}")
    return RequestedOutput(output.name, count)


def _timeout(request: pb.ModelInferRequest) -> int:
    if Parameter.TIMEOUT not in request.parameters:
        return 0
    timeout = integer("parameter 'timeout'", request.parameters[Parameter.TIMEOUT])
    if timeout < 0:
        raise InvalidRequest(f"parameter 'timeout' is expected to be microseconds, 0 or more, got {timeout}")
    return timeout


def _priority(request: pb.ModelInferRequest) -> int:
    if Parameter.PRIORITY not in request.parameters:
        return 0
    priority = integer("parameter 'priority'", request.parameters[Parameter.PRIORITY])
    if not 0 <= priority <= _LOWEST_PRIORITY:
        raise InvalidRequest(
            f"parameter 'priority' is expected to be 1, the highest, to {_LOWEST_PRIORITY}, or 0 for none, "
            f"got {priority}"
        )
    return priority
