"""Nodes that only move elements, and what they do to an array that is broadcast over the tensor that they move."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute
from inferd_training.optimise.graph.shapes import Shape

RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""They give the elements in the order in which they came, under other axes."""

Array = NDArray[Any]


def moves(node: onnx.NodeProto) -> bool:
    """Whether a node's output has its first input's elements, each once, wherever."""
    return node.domain in ("", "ai.onnx") and node.op_type in ("Transpose", *RESHAPES)


def permutation(editor: Editor, node: onnx.NodeProto) -> tuple[int, ...] | None:
    """A Transpose's input axis for each output axis; None where the number of axes is not known."""
    given = attribute(node, "perm")
    if given:
        return tuple(int(axis) for axis in given)
    shape = editor.shape(node.input[0])
    return None if shape is None else tuple(reversed(range(len(shape))))


def forward(editor: Editor, node: onnx.NodeProto, array: Array) -> Array | None:
    """An array that broadcasts over a moving node's input, made one that broadcasts alike over its output.

    None where the node would make it another for each row, or where not enough is known of the shapes.
    """
    return _carried(editor, node, array, node.input[0], node.output[0], back=False)


def backward(editor: Editor, node: onnx.NodeProto, array: Array) -> Array | None:
    """The reverse of `forward`: from the node's output to its input."""
    return _carried(editor, node, array, node.output[0], node.input[0], back=True)


def _carried(
    editor: Editor, node: onnx.NodeProto, array: Array, source: str, target: str, *, back: bool
) -> Array | None:
    if node.op_type == "Transpose":
        axes = permutation(editor, node)
        if axes is None or len(axes) != array.ndim:
            return None
        return np.transpose(array, np.argsort(axes) if back else axes)
    old, new = editor.shape(source), editor.shape(target)
    if old is None or new is None or len(old) != array.ndim:
        return None
    return _reshaped(array, old, new)


def _reshaped(array: Array, old: Shape, new: Shape) -> Array | None:
    if array.size == 1:
        return array.reshape((1,) * len(new))
    # The last axes that both shapes have: elements keep their places along them, whatever is made of those before.
    kept = 0
    while kept < min(len(old), len(new)) and isinstance(old[-1 - kept], int) and old[-1 - kept] == new[-1 - kept]:
        kept += 1
    if prod(array.shape[: array.ndim - kept]) == 1:
        return array.reshape((1,) * (len(new) - kept) + array.shape[array.ndim - kept :])
    # Else a whole row is needed, and it must stay a row: as many elements behind axis 0 before as after.
    row, moved = _row(old), _row(new)
    if row is None or moved is None or prod(row) != prod(moved) or array.shape[0] != 1:
        return None
    return np.broadcast_to(array, (1, *row)).reshape(1, *moved)


def _row(shape: Shape) -> tuple[int, ...] | None:
    """The extents behind axis 0, where all are known and none is empty."""
    known = tuple(extent for extent in shape[1:] if isinstance(extent, int) and extent > 0)
    return known if shape and len(known) == len(shape) - 1 else None


def row_of(editor: Editor, name: str) -> tuple[int, ...] | None:
    """The extents of a tensor's row, all axes but the first; None where they are not known."""
    shape = editor.shape(name)
    return None if shape is None else _row(shape)
