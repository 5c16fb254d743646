"""Which models are taken: what is refused, and what is left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from inferd_training.errors import OptimiseError, VerificationError
from inferd_training.export.structure import check_operators, check_versions
from inferd_training.optimise.graph.int8 import int8_operators
from inferd_training.optimise.graph.nodes import bodies

_LARGEST = 2**31 - 1
"""Bytes: what protobuf can write as one message, which the checker and the runtime are given."""

_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def admit(proto: onnx.ModelProto) -> str | None:
    """Why a model is left as it is, in one sentence; None where it can be worked on.

    Raises OptimiseError for one that cannot be served anyway: an opset or IR version that the installed runtime does
    not take, an operator that no runtime has, a graph that onnx.checker refuses, weights that are not numbers.
    """
    try:
        opset = check_versions(proto)
        # First, since INT8 may have brought in operators that are a runtime's own.
        found = int8_operators(proto)
        if found:
            return f"nothing was changed: the model is quantised already ({', '.join(found)})"
        check_operators(proto, opset)
    except VerificationError as error:
        raise OptimiseError(str(error)) from error
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(proto.graph)):
        return "nothing was changed: the weights are in other files, and were not loaded"
    size = sum(_bytes(tensor) for tensor in _tensors(proto.graph))
    if size > _LARGEST:
        return f"nothing was changed: the weights are {size / 2**30:.1f} GiB, and up to 2 GiB can be checked"
    _check(proto)
    for tensor in _tensors(proto.graph):
        if tensor.data_type in _FLOATS and np.isnan(numpy_helper.to_array(tensor)).any():
            raise OptimiseError(f"the weights '{tensor.name}' hold NaN, where numbers were expected: train it again")
    return None


def _check(proto: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OptimiseError(f"onnx.checker refuses the model: {' '.join(str(error).split())}") from error


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
        for body in bodies(node):
            yield from _tensors(body)


def _bytes(tensor: TensorProto) -> int:
    if tensor.data_type == TensorProto.STRING:
        return sum(len(value) for value in tensor.string_data)
    return prod(tensor.dims) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
