"""LSTM, GRU and RNN nodes without what their converters wrote out: states of zeros, and the last step by a slice."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from inferd_training.optimise.graph import movement
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute

_END = 2**31 - 1
"""Behind the last element of every axis, as slices say it."""

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""The inputs that are states to begin with; zeros, where they are left out."""


def tidy_recurrent(editor: Editor) -> tuple[int, list[str]]:
    """Leaves out first states that are zeros, and takes last steps where the node gives them.

    Gives how many, and notes.
    """
    zeros = steps = 0
    for node in list(editor.nodes):
        if node.op_type in _STATES and node.domain in ("", "ai.onnx"):
            zeros += _without_zeros(editor, node)
            steps += _last_step(editor, node)
    notes = [f"left out {zeros} first states that are zeros"] if zeros else []
    return zeros + steps, [*notes, *([f"took {steps} last steps from the node's own output"] if steps else [])]


def _without_zeros(editor: Editor, node: onnx.NodeProto) -> int:
    count = 0
    for place in _STATES[node.op_type]:
        if len(node.input) > place and node.input[place] and _is_zero(editor, node.input[place]):
            node.input[place] = ""
            count += 1
    while not node.input[-1]:
        del node.input[-1]
    editor.changed()
    return count


def _last_step(editor: Editor, node: onnx.NodeProto) -> bool:
    """Whether the last of all steps, cut out of what the node gives for each, could be had from its last state."""
    forward = attribute(node, "direction", b"forward") == b"forward" and not attribute(node, "layout", 0)
    # With lengths of their own, shorter sequences have zeros for their last steps.
    lengths = len(node.input) > 4 and node.input[4]
    squeeze = editor.only_user(node.output[0]) if node.output[0] else None
    if not forward or lengths or squeeze is None or squeeze.op_type not in movement.RESHAPES:
        return False
    steps, each = editor.shape(node.output[0]), editor.shape(squeeze.output[0])
    cut = editor.only_user(squeeze.output[0])
    if steps is None or each is None or each != (steps[0], *steps[2:]) or cut is None or not _takes_last(editor, cut):
        return False
    if len(node.output) < 2 or not node.output[1]:
        state = editor.fresh(node.output[0])
        editor.describe(state, (1, *steps[2:]), editor.element_type(node.output[0]))
        node.output[:] = [node.output[0], state, *node.output[2:]]
        editor.changed()
    if not editor.can_bypass(cut, node.output[1]):
        return False
    editor.bypass(cut, node.output[1])
    return True


def _takes_last(editor: Editor, node: onnx.NodeProto) -> bool:
    """Whether a node is a Slice from the last element of axis 0 to the end."""
    if node.op_type != "Slice" or len(node.input) < 4:
        return False
    bounds = [editor.constant(name) for name in node.input[1:] if name]
    if any(bound is None or bound.size != 1 for bound in bounds):
        return False
    first, last, axis, *step = (int(bound.reshape(-1)[0]) for bound in bounds if bound is not None)
    return first == -1 and last >= _END and axis == 0 and step in ([], [1])


def _is_zero(editor: Editor, name: str) -> bool:
    """Whether a tensor is known to hold nothing but zeros, whatever its shape."""
    constant = editor.constant(name)
    if constant is not None:
        return constant.dtype.kind == "f" and not constant.any()
    node = editor.producer(name)
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "ConstantOfShape":
        value = attribute(node, "value")
        return value is None or (isinstance(value, TensorProto) and not np.any(onnx.numpy_helper.to_array(value)))
    if node.op_type in ("Expand", "Tile", "Identity") or movement.moves(node):
        return _is_zero(editor, node.input[0])
    return node.op_type == "Concat" and all(_is_zero(editor, part) for part in node.input)
