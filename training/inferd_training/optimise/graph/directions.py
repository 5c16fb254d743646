"""What becomes of both directions of a recurrent layer: reduced over time where they lie, and joined afterwards."""

from __future__ import annotations

import numpy as np
import onnx

from inferd_training.optimise.graph.axes import axes_of
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute

_RECURRENT = ("LSTM", "GRU", "RNN")
_REDUCTIONS = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum")
_TIME, _DIRECTION = 0, 1


def reduce_first(editor: Editor) -> tuple[int, list[str]]:
    """Reductions over time come before the two directions are cut apart and joined; how many, and notes.

    A layer that returns all steps gives [time, 2, rows, units], of which the converter makes [time, rows, 2 units] by
    two slices and a copy of everything. After the reduction there is one step to copy.
    """
    count = sum(_moved(editor, node) for node in list(editor.nodes))
    editor.sweep()
    return count, [f"reduced over time before both directions are joined ({count})"] if count else []


def _moved(editor: Editor, reduction: onnx.NodeProto) -> bool:
    if reduction.op_type not in _REDUCTIONS or reduction.domain or attribute(reduction, "keepdims", 1):
        return False
    join = editor.producer(reduction.input[0])
    if join is None or join.op_type != "Concat" or len(join.input) != 2 or attribute(join, "axis") not in (2, -1):
        return False
    steps = _source(editor, join.input[0], 0)
    if steps is None or _source(editor, join.input[1], 1) != steps or axes_of(editor, reduction) != [_TIME]:
        return False
    shape = editor.shape(steps)
    layer = editor.producer(steps)
    if layer is None or layer.op_type not in _RECURRENT or layer.output[0] != steps or attribute(layer, "layout", 0):
        return False
    if shape is None or len(shape) != 4 or shape[_DIRECTION] != 2 or not isinstance(shape[3], int):
        return False
    result, kind = reduction.output[0], editor.element_type(steps)
    # 0: as many rows as there are.
    target = editor.add_constant(np.array([0, 2 * shape[3]], np.int64), result)
    reduced, swapped = editor.fresh(result), editor.fresh(result)
    editor.describe(reduced, shape[1:], kind)
    editor.describe(swapped, (shape[2], 2, shape[3]), kind)
    for node in (
        onnx.helper.make_node("Transpose", [reduced], [swapped], name=swapped, perm=[1, 0, 2]),
        onnx.helper.make_node("Reshape", [swapped, target], [result], name=f"{result}__joined"),
    ):
        editor.insert(node, before=reduction)
    # In front of those two: the nodes stay in an order in which they can run.
    first = next(node for node in editor.nodes if node.op_type == "Transpose" and node.output[0] == swapped)
    editor.remove(reduction)
    reduction.input[0], reduction.output[0] = steps, reduced
    editor.insert(reduction, before=first)
    return True


def _source(editor: Editor, name: str, direction: int) -> str | None:
    """The tensor [time, 2, rows, units] whose one direction, without its axis, a tensor is."""
    squeeze = editor.producer(name)
    if squeeze is None or squeeze.op_type != "Squeeze" or axes_of(editor, squeeze) != [_DIRECTION]:
        return None
    cut = editor.producer(squeeze.input[0])
    if cut is None or cut.op_type != "Slice":
        return None
    bounds = [editor.constant(bound) for bound in cut.input[1:] if bound]
    if len(bounds) not in (3, 4) or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    start, end, axis, *step = (int(bound.reshape(())) for bound in bounds if bound is not None)
    last = end == 1 if direction == 0 else end > 1
    return cut.input[0] if (start, axis, last) == (direction, _DIRECTION, True) and step in ([], [1]) else None
