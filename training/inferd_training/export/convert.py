"""Keras to ONNX, through a `tf.function` with an explicit signature and tf2onnx.

`tf2onnx.convert.from_keras` fails on Keras 3 models (tensorflow-onnx #2319, #2329, #2348); `from_function` does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import keras
import onnx
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray

from inferd_training import models
from inferd_training.errors import ExportError
from inferd_training.families.family import Scaling

OPSET = 17
"""One below the newest that tf2onnx 1.17 writes: nothing in these graphs gains from 18, and more tools read 17."""

MOST_CONSTANT_BYTES = 32 * 1024 * 1024
"""Of the weights that are converted as constants: tf2onnx takes up to 56 bytes for each of them, 1.8 GB in all."""

_LEAST_OUTSIDE = 1024
"""Bytes of a weight that is worth an input of its own: converters look into small ones."""

_OUTSIDE_DTYPES = ("float16", "float32", "float64")

BATCH = "batch"
"""The name of axis 0 of every input and output."""


def convert(
    model: keras.Model,
    preprocessing: Mapping[str, Scaling],
    opset: int = OPSET,
    *,
    constant_bytes: int = MOST_CONSTANT_BYTES,
) -> onnx.ModelProto:
    """The model in ONNX: its inputs and outputs under the names and in the order of `models.signature`.

    Inputs named in `preprocessing` take raw values of the declared dtype and are scaled inside the graph. Axis 0 of
    every input and output is free, and named `batch`. The largest weights, until those left have `constant_bytes`, are
    the function's inputs while it is traced and converted, and become initializers at the end: TensorFlow's own graph
    is a protobuf message too, with its limit of 2 GB, and tf2onnx copies each constant some thirty times. Raises
    ExportError where tf2onnx cannot convert the model, and ModelError as `models.signature` does.
    """
    described = models.signature(model)
    unknown = sorted(set(preprocessing) - {tensor.name for tensor in described.inputs})
    if unknown:
        raise ExportError(
            f"preprocessing is declared for {', '.join(unknown)}, where the model's inputs are "
            f"{', '.join(tensor.name for tensor in described.inputs)}: correct the names"
        )
    scalings = [preprocessing.get(tensor.name) for tensor in described.inputs]
    # Names that TensorFlow cannot alter: it would turn "my input" into "my_input".
    arguments = [
        tf.TensorSpec((None, *tensor.shape), scaling.dtype if scaling else tensor.dtype, name=f"inferd_input_{i}")
        for i, (tensor, scaling) in enumerate(zip(described.inputs, scalings, strict=True))
    ]

    outside = _large_weights(model, constant_bytes)
    arguments += [
        tf.TensorSpec(weight.shape, weight.dtype, name=f"inferd_weight_{i}") for i, weight in enumerate(outside)
    ]

    def served(*given: tf.Tensor) -> dict[str, tf.Tensor]:
        raw, weights = given[: len(scalings)], given[len(scalings) :]
        ready = [_scaled(tensor, scaling) for tensor, scaling in zip(raw, scalings, strict=True)]
        with keras.StatelessScope(list(zip(outside, weights, strict=True))) if outside else nullcontext():
            answers = models.call(model, ready)
        # The identity keeps an output that is also an input, or is given twice, a tensor of its own.
        return {f"inferd_output_{i}": tf.identity(tensor) for i, tensor in enumerate(answers)}

    try:
        traced = tf.function(served, input_signature=arguments, autograph=False)
        captured = traced.get_concrete_function().graph.captures
        proto, _ = tf2onnx.convert.from_function(traced, input_signature=arguments, opset=opset)
    except Exception as error:  # tf2onnx and TensorFlow raise many types; each means that there is no graph.
        raise ExportError(
            f"tf2onnx {tf2onnx.__version__} cannot convert the model: {models.first_line(error)}"
        ) from error
    if not isinstance(proto, onnx.ModelProto):
        raise ExportError("tf2onnx gave no model")
    # Layers hold constants too that are no variables (what a Normalization adapted to): tf2onnx makes inputs of them.
    found = {inner.name: outer.numpy() for outer, inner in captured if outer.dtype != tf.resource}
    found |= {f"inferd_weight_{i}": weight.numpy() for i, weight in enumerate(outside)}
    _bring_in(proto.graph, found)
    _restore_names(proto.graph, described)
    return proto


def _large_weights(model: keras.Model, constant_bytes: int) -> list[keras.Variable]:
    """The largest weights, until those left have `constant_bytes`; an LSTM layer's are never among them.

    tf2onnx makes ONNX's own LSTM of constants alone, and a Loop of anything else.
    """
    lstm = {
        id(weight) for layer in models.layers(model) if isinstance(layer, keras.layers.LSTM) for weight in layer.weights
    }
    left, chosen = models.weight_bytes(model), []
    for weight in sorted(model.weights, key=models.bytes_of, reverse=True):
        if left <= constant_bytes or models.bytes_of(weight) < _LEAST_OUTSIDE:
            break
        if weight.dtype in _OUTSIDE_DTYPES and id(weight) not in lstm:
            chosen.append(weight)
            left -= models.bytes_of(weight)
    return chosen


def _bring_in(graph: onnx.GraphProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Makes initializers of the inputs that stand for values known now; one without effect on any output is none."""
    for end in [end for end in graph.input if end.name in values]:
        graph.initializer.append(onnx.numpy_helper.from_array(values[end.name], end.name))
        graph.input.remove(end)


def _scaled(raw: tf.Tensor, scaling: Scaling | None) -> tf.Tensor:
    if scaling is None:
        return raw
    scaled = tf.cast(raw, tf.float32) * tf.constant(scaling.scale, tf.float32)
    return scaled + tf.constant(scaling.offset, tf.float32) if scaling.offset else scaled


def _restore_names(graph: onnx.GraphProto, described: models.Signature) -> None:
    """Gives the graph's ends the model's names, order and axes, whatever TensorFlow made of them."""
    renamed = {f"inferd_input_{i}": tensor.name for i, tensor in enumerate(described.inputs)}
    renamed |= {f"inferd_output_{i}": tensor.name for i, tensor in enumerate(described.outputs)}
    for name in set(renamed.values()):
        # An inner tensor that happens to bear an end's name makes way.
        renamed[name] = f"{name}__inner"
    _rename(graph, renamed)
    for ends, tensors in ((graph.input, described.inputs), (graph.output, described.outputs)):
        by_name = {end.name: end for end in ends}
        expected = [tensor.name for tensor in tensors]
        if sorted(by_name) != sorted(expected):
            raise ExportError(
                f"the converted graph has {', '.join(sorted(by_name)) or 'nothing'} where the model has "
                f"{', '.join(expected)}: is an input without effect on any output?"
            )
        ordered = [by_name[name] for name in expected]
        for end, tensor in zip(ordered, tensors, strict=True):
            _name_axes(end, tensor)
        copies = [onnx.ValueInfoProto.FromString(end.SerializeToString()) for end in ordered]
        del ends[:]
        ends.extend(copies)


def _rename(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        for value in values:
            value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                # A loop's body sees the tensors around it by the same names.
                _rename(attribute.g, renamed)


def _name_axes(end: onnx.ValueInfoProto, tensor: models.Tensor) -> None:
    shape = end.type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add().dim_param = BATCH
    for axis, extent in enumerate(tensor.shape, start=1):
        if extent is None:
            shape.dim.add().dim_param = f"{tensor.name}_axis{axis}"
        else:
            shape.dim.add().dim_value = extent
