"""Nodes that compute weights * x + bias with constant weights: Conv, Gemm and MatMul, seen alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute, set_attribute

Array = NDArray[np.float64]

OPERATORS = ("Conv", "Gemm", "MatMul")


@dataclass(slots=True, eq=False)
class Linear:
    """A node with its weights as [groups, outputs of a group, inputs of a group, kernel] and its bias as [outputs].

    Both are float64, a copy to be changed; `write` rounds them once, into constants that no other node has. `adder` is
    the Add behind a MatMul that holds its bias. `padded`: zeros are put around x, where an offset would be put too.
    """

    node: onnx.NodeProto
    adder: onnx.NodeProto | None
    weights: Array
    bias: Array | None
    takes_bias: bool
    padded: bool

    @property
    def data(self) -> str:
        """The name of x."""
        return str(self.node.input[0])

    @property
    def result(self) -> str:
        """The name of what it gives, with the bias."""
        return str((self.adder or self.node).output[0])

    @property
    def channels_in(self) -> int:
        """How many channels x has."""
        return int(self.weights.shape[0] * self.weights.shape[2])

    @property
    def channels_out(self) -> int:
        """How many channels the result has."""
        return int(self.weights.shape[0] * self.weights.shape[1])

    def channel_axis(self, rank: int) -> int:
        """The axis of x, and of the result, that counts the channels."""
        return 1 if self.node.op_type == "Conv" else rank - 1

    def scale_input(self, scale: Array) -> None:
        """Makes it of x what it was of x * scale. `scale` is [channels in]."""
        groups, _, inputs, _ = self.weights.shape
        self.weights = self.weights * scale.reshape(groups, 1, inputs, 1)

    def offset_input(self, offset: Array) -> None:
        """Makes it of x what it was of x + offset, [channels in]; only where it is not padded, or the offset is 0."""
        groups, _, inputs, _ = self.weights.shape
        sums = (self.weights * offset.reshape(groups, 1, inputs, 1)).sum(axis=(2, 3)).reshape(-1)
        self.offset_output(sums)

    def scale_output(self, scale: Array) -> None:
        """Makes it give what it gave, times `scale`, [channels out]."""
        groups, outputs, _, _ = self.weights.shape
        self.weights = self.weights * scale.reshape(groups, outputs, 1, 1)
        if self.bias is not None:
            self.bias = self.bias * scale

    def offset_output(self, offset: Array) -> None:
        """Makes it give what it gave, plus `offset`, [channels out]."""
        if self.bias is not None or offset.any():
            self.bias = offset if self.bias is None else self.bias + offset

    def write(self, editor: Editor) -> bool:
        """Puts the weights and the bias into the graph.

        False, and nothing done, where the weights' dtype cannot hold them: too large, or so small that digits get lost.
        """
        old = editor.constant(self.node.input[1])
        if old is None:
            return False
        weights = self.weights.astype(old.dtype)
        bias = None if self.bias is None else self.bias.astype(old.dtype)
        if not _held(self.weights, weights) or not (bias is None or np.isfinite(bias).all()):
            return False
        self.node.input[1] = editor.add_constant(self._laid_out(weights, old.shape), self.node.input[1])
        if bias is not None:
            self._write_bias(editor, bias)
        if self.node.op_type == "Gemm":
            # Both are in the weights and the bias now.
            set_attribute(self.node, "alpha", None)
            set_attribute(self.node, "beta", None)
        editor.changed()
        return True

    def _laid_out(self, weights: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        if self.node.op_type == "Conv":
            return weights.reshape(shape)
        plain = weights[0, :, :, 0]
        return plain if self.node.op_type == "Gemm" and attribute(self.node, "transB", 0) else plain.T

    def _write_bias(self, editor: Editor, bias: NDArray[Any]) -> None:
        if self.adder is not None:
            place = 1 if self.adder.input[0] == self.node.output[0] else 0
            self.adder.input[place] = editor.add_constant(bias, self.adder.input[place])
            return
        if self.node.op_type == "MatMul":
            self.node.op_type = "Gemm"
        if len(self.node.input) > 2 and self.node.input[2]:
            name = editor.add_constant(bias, self.node.input[2])
        else:
            name = editor.add_constant(bias, f"{self.node.output[0]}_bias")
        self.node.input[:] = [*self.node.input[:2], name]


def read(editor: Editor, node: onnx.NodeProto) -> Linear | None:
    """A node as a Linear; None where it is none, or what it multiplies by is not constant."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        return None
    weights, shape = editor.constant(node.input[1]), editor.shape(node.input[0])
    if weights is None or weights.dtype.kind != "f" or shape is None or len(shape) < 2 or not weights.size:
        return None
    exact = weights.astype(np.float64)
    if node.op_type == "Conv":
        return _conv(editor, node, exact)
    if node.op_type == "Gemm":
        return _gemm(editor, node, exact)
    if exact.ndim != 2:
        return None
    adder = _adder(editor, node, exact.shape[1])
    bias = None
    if adder is not None:
        (constant,) = (value for value in map(editor.constant, adder.input) if value is not None)
        bias = np.broadcast_to(constant.astype(np.float64).reshape(-1), exact.shape[1:])
    return Linear(
        node,
        adder,
        exact.T[np.newaxis, :, :, np.newaxis],
        bias,
        # A Gemm has a bias, but takes two axes only.
        takes_bias=adder is not None or len(shape) == 2,
        padded=False,
    )


def _conv(editor: Editor, node: onnx.NodeProto, weights: Array) -> Linear | None:
    bias = None
    if len(node.input) > 2 and node.input[2]:
        constant = editor.constant(node.input[2])
        if constant is None:
            return None
        bias = constant.astype(np.float64)
    groups = int(attribute(node, "group", 1))
    outputs, inputs, *kernel = weights.shape
    grouped = weights.reshape(groups, outputs // groups, inputs, -1)
    return Linear(node, None, grouped, bias, takes_bias=True, padded=_is_padded(node, kernel))


def _is_padded(node: onnx.NodeProto, kernel: list[int]) -> bool:
    automatic = attribute(node, "auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        # A kernel of one element needs nothing around x, whatever the strides.
        return any(extent > 1 for extent in kernel)
    return automatic == b"NOTSET" and any(attribute(node, "pads", ()))


def _gemm(editor: Editor, node: onnx.NodeProto, weights: Array) -> Linear | None:
    if attribute(node, "transA", 0):
        return None
    plain = weights if attribute(node, "transB", 0) else weights.T
    bias = None
    if len(node.input) > 2 and node.input[2]:
        constant = editor.constant(node.input[2])
        if constant is None or not _one_a_channel(constant, len(plain)):
            return None
        scaled = constant.astype(np.float64).reshape(-1) * attribute(node, "beta", 1.0)
        bias = np.broadcast_to(scaled, (len(plain),))
    alpha = attribute(node, "alpha", 1.0)
    return Linear(node, None, alpha * plain[np.newaxis, :, :, np.newaxis], bias, takes_bias=True, padded=False)


def _adder(editor: Editor, node: onnx.NodeProto, channels: int) -> onnx.NodeProto | None:
    """The Add of a constant bias behind a MatMul, where nothing else uses the product."""
    user = editor.only_user(node.output[0])
    if user is None or user.op_type != "Add" or user.domain not in ("", "ai.onnx"):
        return None
    (other,) = (name for name in user.input if name != node.output[0])
    constant, shape = editor.constant(other), editor.shape(node.output[0])
    if constant is None or shape is None or constant.ndim > len(shape) or not _one_a_channel(constant, channels):
        return None
    return user


def _one_a_channel(bias: NDArray[Any], channels: int) -> bool:
    """Whether a bias has one value for each element of the last axis, or one for all."""
    return bias.size == 1 or (bias.size == channels and bias.shape[-1] == channels)


def _held(exact: Array, rounded: NDArray[Any]) -> bool:
    """Whether rounding kept all weights to the dtype's precision, as seen from the largest one of the same channel.

    It does not where they overflow, or where all of a channel's weights fall below the smallest normal number.
    """
    if not np.isfinite(rounded).all():
        return False
    peaks = np.abs(exact).max(axis=(2, 3), keepdims=True, initial=0.0)
    return bool((np.abs(rounded - exact) <= np.finfo(rounded.dtype).eps * peaks).all())
