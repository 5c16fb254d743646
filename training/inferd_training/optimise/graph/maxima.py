"""The largest along a long first axis, taken in two steps."""

from __future__ import annotations

from math import isqrt

import numpy as np
import onnx

from inferd_training.optimise.graph.axes import axes_of
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute, copied, set_attribute
from inferd_training.optimise.graph.reshaping import make_reshape, target_of

_SHORTEST = 16
"""Extent of an axis that is worth a second step."""


def split_maxima(editor: Editor) -> tuple[int, list[str]]:
    """Largest and smallest values over a long first axis: of parts of it first, then of those; how many, and notes.

    The answer is the same. ONNX Runtime's kernel for a first axis takes four times as long as the one for an axis in
    the middle, which the parts make of it (measured: 577 against 136 us for the largest of [128, 2, 64, 64], ONNX
    Runtime 1.32). Sums and means have no such kernel, and are not exact in another order.
    """
    count = sum(_split(editor, node) for node in list(editor.nodes))
    return count, [f"taken in two steps along a first axis ({count})"] if count else []


def _split(editor: Editor, node: onnx.NodeProto) -> bool:
    if node.op_type not in ("ReduceMax", "ReduceMin") or node.domain or attribute(node, "keepdims", 1):
        return False
    shape = editor.shape(node.input[0])
    if axes_of(editor, node) != [0] or not shape or not isinstance(shape[0], int) or shape[0] < _SHORTEST:
        return False
    length, result, kind = shape[0], node.output[0], editor.element_type(node.input[0])
    # As many parts as each is long, about: 8 of 16 for 128.
    parts = max(part for part in range(1, isqrt(length) + 1) if length % part == 0)
    apart = (parts, length // parts, *shape[1:])
    target = target_of(shape, apart)
    if parts == 1 or target is None:
        return False
    cut, partly = editor.fresh(result), editor.fresh(result)
    editor.describe(cut, apart, kind)
    editor.describe(partly, (parts, *shape[1:]), kind)
    first = copied(node)
    first.name, first.output[0] = partly, partly
    if len(first.input) > 1:
        first.input[1] = editor.add_constant(np.array([1], np.int64), result)
    else:
        set_attribute(first, "axes", [1])
    reshape = onnx.helper.make_node("Reshape", [node.input[0], ""], [cut], name=cut)
    for step in (reshape, first):
        editor.insert(step, before=node)
    make_reshape(editor, reshape, node.input[0], target)
    first.input[0], node.input[0] = cut, partly
    editor.changed()
    return True
