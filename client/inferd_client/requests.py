"""Arrays to the bytes of a ModelInferRequest, the same that protobuf would make of the message.

Everything about a request that follows from names, shapes and dtypes is decided once and kept as a `Plan`. A protobuf
message is a run of fields, so what is left for each call is to join bytes that were serialised apart with the arrays:
no message is built, and a tensor is copied once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from inferd_protocol import wire
from inferd_protocol.datatypes import BF16, BYTES
from inferd_protocol.grpc_service_pb2 import InferParameter, ModelInferRequest
from inferd_protocol.reasons import Parameter
from inferd_protocol.tensors import Tensor, bf16_bits, encode_raw

from inferd_client.errors import InvalidInput, MessageTooLarge
from inferd_client.metadata import ModelMetadata, TensorMetadata

Arrays: TypeAlias = Mapping[str, Tensor]
ParameterValue: TypeAlias = bool | int | float | str
Buffer: TypeAlias = Any
"""Contiguous bytes: `bytes` or an array. Python 3.11 has no type for what has the buffer protocol."""
Encoder: TypeAlias = Callable[[Tensor], Buffer]
Wanted: TypeAlias = tuple[tuple[str, ...] | None, tuple[tuple[str, int], ...]]
"""The outputs asked for, None for all, and those of them to classify, with how many of the best elements."""

_RAW = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER

EVERYTHING: Wanted = (None, ())


@dataclass(frozen=True, slots=True)
class Plan:
    """The constant part of the requests for one model whose inputs have the same names, shapes and dtypes.

    A request is `front`, then the call's own fields, then `body`, then a buffer an input, as protobuf orders them.
    `buffers` has, an input, its name, the bytes before its buffer (None: they depend on the elements) and what makes
    the buffer (None: the array is the buffer). `size` is that of the whole request less the call's own fields, None
    where it depends on the elements.
    """

    model: str
    front: bytes
    body: bytes
    buffers: tuple[tuple[str, bytes | None, Encoder | None], ...]
    size: int | None

    def build(self, arrays: Arrays, own: bytes, limit: int) -> bytes:
        """The request. `arrays` are those of the plan's inputs.

        Raises MessageTooLarge for a request of more than `limit` bytes, without having put it together.
        """
        if self.size is not None and self.size + len(own) > limit:
            raise self._too_large(self.size + len(own), limit)
        parts: list[Buffer] = [self.front, own, self.body]
        for name, prefix, encode in self.buffers:
            buffer: Buffer = arrays[name]
            if encode is not None:
                buffer = encode(buffer)
            elif not buffer.flags.c_contiguous:
                buffer = np.ascontiguousarray(buffer)
            parts += (wire.prefix(_RAW, len(buffer)) if prefix is None else prefix, buffer)
        if self.size is None and (size := sum(memoryview(part).nbytes for part in parts)) > limit:
            raise self._too_large(size, limit)
        # Joining makes the only copy: grpc takes nothing but bytes.
        return b"".join(parts)

    def _too_large(self, size: int, limit: int) -> MessageTooLarge:
        return MessageTooLarge(
            f"a request of {size} bytes for model '{self.model}' is over this client's limit of {limit} bytes"
        )


def wanted(outputs: Sequence[str] | None, classification: Mapping[str, int] | None) -> Wanted:
    """The two arguments that say what to answer, as one value to look plans up by.

    Raises InvalidInput for a lone name in place of a sequence of names.
    """
    if isinstance(outputs, str):
        raise InvalidInput(f"outputs is a sequence of names, such as [{outputs!r}], got the name itself")
    return None if outputs is None else tuple(outputs), tuple(classification.items()) if classification else ()


def plan(model: ModelMetadata, version: str, arrays: Arrays, wanted: Wanted) -> Plan:
    """Checks names and dtypes against the model's metadata and prepares requests like this one.

    Shapes are the server's to check: it knows the limits of its batches, too.
    Raises InvalidInput for a name that the model does not have and for a cast that could lose something.
    """
    known = {tensor.name: tensor for tensor in model.inputs}
    front = ModelInferRequest(model_name=model.name, model_version=version).SerializeToString()
    message = ModelInferRequest()
    buffers: list[tuple[str, bytes | None, Encoder | None]] = []
    size: int | None = 0
    for name, array in arrays.items():
        tensor = known.get(name)
        if tensor is None:
            raise InvalidInput(f"model '{model.name}' has no input '{name}': its inputs are {_names(model.inputs)}")
        message.inputs.add(name=name, datatype=tensor.datatype.name, shape=array.shape)
        encode = _encoder(model.name, tensor, array.dtype)
        if tensor.datatype.size is None:
            buffers.append((name, None, encode))
            size = None
        else:
            length = array.size * tensor.datatype.size
            prefix = wire.prefix(_RAW, length)
            buffers.append((name, prefix, encode))
            size = None if size is None else size + len(prefix) + length
    _request_outputs(message, model, wanted)
    body = message.SerializeToString()
    return Plan(model.name, front, body, tuple(buffers), None if size is None else len(front) + len(body) + size)


def own_fields(request_id: str, parameters: Mapping[str, ParameterValue] | None) -> bytes:
    """What differs from call to call beside the tensors: the request's id and its parameters, serialised.

    Raises InvalidInput for a parameter that is no bool, int, float or str, or an integer of more than 64 bits.
    """
    message = ModelInferRequest(id=request_id)
    for name, value in (parameters or {}).items():
        message.parameters[name].CopyFrom(_parameter(name, value))
    return message.SerializeToString(deterministic=True)


def is_sequence(parameters: Mapping[str, ParameterValue] | None) -> bool:
    """Whether the request is one of a sequence: the server keeps state between them, so it may not run twice."""
    return parameters is not None and Parameter.SEQUENCE_ID in parameters


def _parameter(name: str, value: object) -> InferParameter:
    match value:
        case bool():
            return InferParameter(bool_param=value)
        case int() if -(2**63) <= value < 2**63:
            return InferParameter(int64_param=value)
        case int() if 0 <= value < 2**64:
            return InferParameter(uint64_param=value)
        case float():
            return InferParameter(double_param=value)
        case str():
            return InferParameter(string_param=value)
        case _:
            raise InvalidInput(f"parameter '{name}' is a bool, a 64-bit integer, a float or a str, got {value!r}")


def _request_outputs(message: ModelInferRequest, model: ModelMetadata, wanted: Wanted) -> None:
    outputs, classification = wanted[0], dict(wanted[1])
    if outputs is None:
        if not classification:
            return  # none named means all
        outputs = tuple(tensor.name for tensor in model.outputs)
    for name in classification:
        if name not in outputs:
            listed = ", ".join(f"'{output}'" for output in outputs)
            raise InvalidInput(f"classification names '{name}', which is not among the outputs asked for: {listed}")
    for name in outputs:
        output = message.outputs.add(name=name)
        if name in classification:
            output.parameters[Parameter.CLASSIFICATION].int64_param = classification[name]


def _encoder(model: str, tensor: TensorMetadata, dtype: np.dtype[np.generic]) -> Encoder | None:
    """What makes an input's buffer of an array of `dtype`, None where the array is it.

    Raises InvalidInput for a cast that could lose something.
    """
    datatype = tensor.datatype
    if datatype is BYTES:
        if dtype.kind not in "OSU":
            raise InvalidInput(f"input '{tensor.name}' of model '{model}' takes strings, got an array of {dtype}")
        return lambda array: _encode_bytes(tensor.name, array)
    # BF16, which numpy lacks, goes in as float32 and is rounded here: the one rounding a user asks for by the model.
    target = np.dtype("<f4") if datatype is BF16 else datatype.numpy
    if not _lossless(dtype, target):
        raise InvalidInput(
            f"input '{tensor.name}' of model '{model}' takes {datatype.name}, and {dtype} does not fit into it without "
            f"loss: convert the array yourself, for example with .astype('{target.name}')"
        )
    if datatype is BF16:
        return lambda array: bf16_bits(array).astype("<u2", copy=False)
    if dtype == target:
        return None
    return lambda array: np.ascontiguousarray(array, target)


def _lossless(source: np.dtype[np.generic], target: np.dtype[np.generic]) -> bool:
    # numpy calls 64-bit integers safe in float64, which holds 53 of their bits.
    if source.kind in "iu" and source.itemsize == 8 and target.kind == "f":
        return False
    return np.can_cast(source, target, "safe")


def _encode_bytes(name: str, array: Tensor) -> bytes:
    if array.dtype.kind == "O":
        for element in array.flat:
            if not isinstance(element, (bytes, str)):
                raise InvalidInput(f"input '{name}' takes str or bytes, got an element of {type(element).__name__}")
    return encode_raw(array, BYTES)


def _names(tensors: Sequence[TensorMetadata]) -> str:
    return ", ".join(f"'{tensor.name}'" for tensor in tensors)
