"""Whether an offset in front of a Conv, Gemm or MatMul may become part of its bias."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from inferd_training.optimise.graph import affine, movement
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.linear import Linear

Array = NDArray[np.float64]

_MOST_CANCELLED = 16.0
"""By how much the terms may be larger than their sum. (x - 1e6) * w is exact to the last digit, x * w - 1e6 * w is not:
each doubling costs a bit of the 24 that a float32 has, and 4 bits leave an error of 1e-6."""

_RANGES: dict[int, tuple[float, float]] = {
    TensorProto.UINT8: (0.0, 255.0),
    TensorProto.INT8: (-128.0, 127.0),
    TensorProto.UINT16: (0.0, 65535.0),
    TensorProto.INT16: (-32768.0, 32767.0),
    TensorProto.BOOL: (0.0, 1.0),
}


def why_not(editor: Editor, unit: Linear, root: str, scale: Array, offset: Array) -> str | None:
    """One clause that says why root * scale + offset, [channels in] each, cannot go into `unit`; None where it can."""
    if not offset.any():
        return None
    if unit.padded:
        return "the zeros around its input are not shifted"
    if not unit.takes_bias:
        return "it has no bias"
    cancelled = _cancelled(_range(editor, root), scale, offset)
    if cancelled > _MOST_CANCELLED:
        return f"it is up to {cancelled:.0f} times as large as what it leaves, and digits would be lost"
    return None


def _cancelled(known: tuple[float, float] | None, scale: Array, offset: Array) -> float:
    if known is None:
        # Then whoever shifts the values is taken to bring them to the order of 1, as preprocessing does.
        return float(1 + 2 * np.abs(offset).max())
    ends = [extreme * scale for extreme in known]
    terms = np.abs(ends).max(axis=0) + np.abs(offset)
    left = np.abs([end + offset for end in ends]).max(axis=0)
    if not left[terms > 0].all():
        return float("inf")
    return float((terms[terms > 0] / left[terms > 0]).max(initial=1.0))


def _range(editor: Editor, name: str) -> tuple[float, float] | None:
    """The least and the largest value that a tensor can have, where it is an integer made a float."""
    node: onnx.NodeProto | None
    while (node := editor.producer(name)) is not None and movement.moves(node):
        name = node.input[0]
    if node is None or node.op_type != "Cast" or affine.read(editor, node) is not None:
        return None
    return _RANGES.get(editor.element_type(node.input[0]))
