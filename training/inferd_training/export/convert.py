"""Keras to ONNX, through a `tf.function` with an explicit signature and tf2onnx.

`tf2onnx.convert.from_keras` fails on Keras 3 models (tensorflow-onnx #2319, #2329, #2348); `from_function` does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from inferd_training import models
from inferd_training.errors import ExportError
from inferd_training.export.layers import nodes
from inferd_training.families.family import Scaling

OPSET = 17
"""One below the newest that tf2onnx 1.17 writes: nothing in these graphs gains from 18, and more tools read 17."""

BATCH = "batch"
"""The name of axis 0 of every input and output."""


def convert(
    model: keras.Model, preprocessing: Mapping[str, Scaling], opset: int = OPSET, *, large: bool = False
) -> onnx.ModelProto:
    """The model in ONNX: its inputs and outputs under the names and in the order of `models.signature`.

    Inputs named in `preprocessing` take raw values of the declared dtype and are scaled inside the graph. Axis 0 of
    every input and output is free, and named `batch`. A `large` model is one whose weights TensorFlow's own graph, a
    protobuf message too, cannot hold: it is converted without TensorFlow's optimizer. The weights are in the result
    either way, which then cannot be serialized whole. Raises ExportError where tf2onnx cannot convert the model, and
    ModelError as `models.signature` does.
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

    def served(*raw: tf.Tensor) -> dict[str, tf.Tensor]:
        ready = [_scaled(tensor, scaling) for tensor, scaling in zip(raw, scalings, strict=True)]
        # The identity keeps an output that is also an input, or is given twice, a tensor of its own.
        return {f"inferd_output_{i}": tf.identity(tensor) for i, tensor in enumerate(models.call(model, ready))}

    try:
        traced = tf.function(served, input_signature=arguments, autograph=False)
        with _product():
            proto, weights = tf2onnx.convert.from_function(
                traced, input_signature=arguments, opset=opset, large_model=large
            )
    except Exception as error:  # tf2onnx and TensorFlow raise many types; each means that there is no graph.
        raise ExportError(
            f"tf2onnx {tf2onnx.__version__} cannot convert the model: {models.first_line(error)}"
        ) from error
    if not isinstance(proto, onnx.ModelProto):
        raise ExportError("tf2onnx gave no model")
    if weights is not None:
        _bring_back(proto, weights.name_to_tensor_data)
    _restore_names(proto.graph, described)
    return proto


@contextmanager
def _product() -> Iterator[None]:
    """tf2onnx 1.17 measures large weights by `numpy.product`, which numpy 2 has not any more."""
    missing = not hasattr(np, "product")
    if missing:
        np.product = np.prod  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if missing:
            del np.product  # type: ignore[attr-defined]


def _bring_back(proto: onnx.ModelProto, weights: dict[str, bytes]) -> None:
    """Puts the weights that tf2onnx keeps apart into the tensors that they are of."""
    constants = [attribute.t for node in nodes(proto.graph) for attribute in node.attribute if attribute.HasField("t")]
    for tensor in (*proto.graph.initializer, *constants):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            # Taken out, so that there are never two copies of all.
            tensor.raw_data = weights.pop(tensor.external_data[0].value)
            del tensor.external_data[:]
            tensor.ClearField("data_location")


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
