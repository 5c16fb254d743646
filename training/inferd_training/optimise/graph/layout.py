"""Transposes and reshapes that can be left out or joined, and computed shapes that can be written down."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx

from inferd_training.optimise.graph import linear, movement
from inferd_training.optimise.graph.commuting import transpose_first
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import set_attribute
from inferd_training.optimise.graph.reshaping import make_reshape, target_of
from inferd_training.optimise.graph.shapes import Shape


def straighten(editor: Editor) -> tuple[int, list[str]]:
    """Leaves out, joins and simplifies Transposes and reshapes until nothing more can be.

    Gives how many steps that took, and notes.
    """
    done: Counter[str] = Counter()
    changed = True
    while changed:
        # A step takes out no node but the one that it looks at, or one before it.
        steps = [step for node in list(editor.nodes) if (step := _step(editor, node)) is not None]
        editor.sweep()
        changed = bool(steps)
        done.update(steps)
    for node in list(editor.nodes):
        if _permuted(editor, node):
            done["Transpose before a row is multiplied: the weights are transposed instead"] += 1
    return done.total(), [f"{step} ({count})" for step, count in done.items()]


def _step(editor: Editor, node: onnx.NodeProto) -> str | None:
    """Changes something about one node, and says what; None where there is nothing to change."""
    if not movement.moves(node):
        return None
    return _transpose_step(editor, node) if node.op_type == "Transpose" else _reshape_step(editor, node)


def _transpose_step(editor: Editor, node: onnx.NodeProto) -> str | None:
    axes = movement.permutation(editor, node)
    if axes is None:
        return None
    source = node.input[0]
    if axes == tuple(range(len(axes))) and editor.can_bypass(node, source):
        editor.bypass(node, source)
        return "Transpose that moved nothing: left out"
    before = editor.producer(source)
    if before is not None and before.op_type == "Transpose" and movement.moves(before):
        first = movement.permutation(editor, before)
        if first is not None and editor.only_user(source) is node:
            node.input[0] = before.input[0]
            set_attribute(node, "perm", [first[axis] for axis in axes])
            editor.remove(before)
            return "two Transposes: joined"
    shape = editor.shape(source)
    if shape is None or axes == tuple(range(len(axes))):
        return None
    # Axes of one element may be anywhere: as long as the others keep their order, so do the elements.
    long = [axis for axis in axes if shape[axis] != 1]
    target = target_of(shape, tuple(shape[axis] for axis in axes))
    if long == sorted(long) and target is not None:
        make_reshape(editor, node, source, target)
        return "Transpose of axes of one element: a Reshape"
    return "Transpose behind a reshape: put before it" if transpose_first(editor, node) else None


def _reshape_step(editor: Editor, node: onnx.NodeProto) -> str | None:
    source = node.input[0]
    old, new = editor.shape(source), editor.shape(node.output[0])
    if old is None or new is None:
        return None
    if _equal(old, new) and editor.can_bypass(node, source):
        editor.bypass(node, source)
        return f"{node.op_type} to the shape that it had: left out"
    before = editor.producer(source)
    if before is not None and before.op_type in movement.RESHAPES and movement.moves(before):
        earlier = editor.shape(before.input[0])
        target = None if earlier is None else target_of(earlier, new)
        if target is not None and editor.only_user(source) is node:
            make_reshape(editor, node, before.input[0], target)
            editor.remove(before)
            return "two reshapes: joined"
    if node.op_type == "Reshape" and editor.constant(node.input[1]) is None:
        target = target_of(old, new)
        if target is not None:
            make_reshape(editor, node, source, target)
            return "Reshape to a computed shape: to a constant one"
    return None


def _equal(old: Shape, new: Shape) -> bool:
    """Whether two shapes of the same elements are equal: one extent follows from the others."""
    if len(old) != len(new):
        return False
    unlike = [pair for pair in zip(old, new, strict=True) if pair[0] is None or pair[0] != pair[1]]
    return len(unlike) <= 1 and not any(isinstance(a, int) and isinstance(b, int) for a, b in unlike)


def _permuted(editor: Editor, node: onnx.NodeProto) -> bool:
    """Transposes the weights of a MatMul or Gemm in place of the rows that it takes, where those are made of one tensor
    by a Transpose and reshapes that nothing else uses. Whether it did.
    """
    unit = linear.read(editor, node)
    if unit is None or node.op_type == "Conv":
        return False
    path, name = list[onnx.NodeProto](), unit.data
    while (mover := editor.producer(name)) is not None and movement.moves(mover) and editor.only_user(name) is not None:
        path.append(mover)
        name = mover.input[0]
    row = movement.row_of(editor, name)
    flat = editor.shape(unit.data)
    if row is None or flat is None or len(flat) != 2 or not any(mover.op_type == "Transpose" for mover in path):
        return False
    # Where each element of the row that is multiplied comes from.
    places: np.ndarray | None = np.arange(unit.channels_in).reshape(1, *row)
    for mover in reversed(path):
        places = None if places is None else movement.forward(editor, mover, places)
    if places is None or places.shape != (1, unit.channels_in):
        return False
    weights = np.empty_like(unit.weights)
    weights[:, :, places[0]] = unit.weights
    unit.weights = weights
    if not unit.write(editor):
        return False
    make_reshape(editor, path[0], name, [-1, unit.channels_in])
    return True
