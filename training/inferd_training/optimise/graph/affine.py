"""Nodes that compute x * scale + offset, elementwise, with constants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute
from inferd_training.optimise.graph.shapes import Shape

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """x * scale + offset, of the tensor named `source`. Both arrays have as many axes as x, and broadcast over it."""

    source: str
    scale: Array
    offset: Array


def read(editor: Editor, node: onnx.NodeProto) -> Affine | None:
    """What a node computes, where it is this; None where it is not, or gives a tensor of another shape.

    Float tensors only: integers wrap around and divide otherwise. In float64, so that several can be joined before
    anything is rounded.
    """
    if node.domain not in ("", "ai.onnx") or not node.output or not editor.is_float(node.output[0]):
        return None
    if node.op_type == "BatchNormalization":
        return _batch_normalisation(editor, node)
    if node.op_type == "Neg":
        shape = editor.shape(node.input[0])
        return None if shape is None else _affine(node.input[0], shape, np.array(-1.0), np.array(0.0))
    if node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return None
    left, right = (editor.constant(name) for name in node.input)
    if (left is None) == (right is None):
        return None
    source = node.input[1] if right is None else node.input[0]
    constant = np.asarray(left if right is None else right, np.float64)
    shape = editor.shape(source)
    if shape is None or not np.isfinite(constant).all():
        return None
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if node.op_type == "Mul":
        return _affine(source, shape, constant, zero)
    if node.op_type == "Add":
        return _affine(source, shape, one, constant)
    if node.op_type == "Sub":
        return _affine(source, shape, -one, constant) if right is None else _affine(source, shape, one, -constant)
    if right is None or not constant.all():
        # A constant divided by x is no such function, and x by 0 no number.
        return None
    return _affine(source, shape, 1 / constant, zero)


def _batch_normalisation(editor: Editor, node: onnx.NodeProto) -> Affine | None:
    training = attribute(node, "training_mode", 0) or any(node.output[1:])
    # Before opset 9, spatial=0 normalised every element by itself.
    if training or not attribute(node, "spatial", 1):
        return None
    shape = editor.shape(node.input[0])
    constants = [editor.constant(name) for name in node.input[1:5]]
    if shape is None or len(shape) < 2 or any(constant is None for constant in constants):
        return None
    gamma, beta, mean, variance = (np.asarray(constant, np.float64) for constant in constants)
    deviation = np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    if not (np.isfinite(deviation).all() and deviation.all()):
        return None
    scale = gamma / deviation
    channels = (1, -1, *(1,) * (len(shape) - 2))
    return _affine(node.input[0], shape, scale.reshape(channels), (beta - mean * scale).reshape(channels))


def _affine(source: str, shape: Shape, scale: Array, offset: Array) -> Affine | None:
    rank = len(shape)
    if scale.ndim > rank:
        return None
    full = (1,) * (rank - scale.ndim) + scale.shape
    if any(extent not in (1, own) for extent, own in zip(full, shape, strict=True)):
        # The result would be larger than x, or nobody knows.
        return None
    return Affine(source, scale.reshape(full), offset.reshape(full))
