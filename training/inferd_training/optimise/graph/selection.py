"""Selections by a mask, which the converter writes as two products and a sum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from inferd_training.optimise.graph.editor import Editor

_ALL = 1e30
"""What float32 keeps of a sum with such a number is that number, for any other below 2^24 times less."""


def join_selections(editor: Editor) -> tuple[int, list[str]]:
    """Sums of what a mask keeps and of a constant where it does not become selections; how many, and notes."""
    count = sum(_select(editor, node) for node in list(editor.nodes))
    return count, [f"products with a mask and with its opposite: one selection ({count})"] if count else []


def _select(editor: Editor, last: onnx.NodeProto) -> bool:
    """x times a mask plus a constant times the mask's opposite: x where the mask is set, else the constant.

    Where x is infinite and not selected, the sum was no number; the selection is the constant.
    """
    if last.op_type != "Add":
        return False
    for kept, rest in _orders(editor, last, "Mul", "Mul"):
        for opposite, other in _with_constant(editor, rest, "Cast"):
            negation = editor.producer(opposite.input[0])
            if other.size != 1 or negation is None or negation.op_type != "Not":
                continue
            mask = negation.input[0]
            for name, source in _inputs(kept):
                cast = editor.producer(name)
                if cast is None or cast.op_type != "Cast" or cast.input[0] != mask or not editor.is_float(source):
                    continue
                _put_selection(editor, last, _narrowed(editor, mask, source), source, other.reshape(()))
                return True
    return False


def _put_selection(
    editor: Editor,
    last: onnx.NodeProto,
    mask: str,
    source: str,
    value: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> None:
    """Puts a selection in the place of `last`.

    Beside a value as large as that of an attention's mask whatever is added to it is rounded away: the selection is
    then a sum, which has a faster kernel, and the choice is made on the mask's few elements.
    """
    name = last.name or last.output[0]
    constant = editor.add_constant(value, name)
    if abs(float(value)) < _ALL:
        nodes = [onnx.helper.make_node("Where", [mask, source, constant], [last.output[0]], name=name)]
    else:
        nothing = editor.add_constant(np.zeros_like(value), name)
        bias = editor.fresh(name)
        nodes = [
            onnx.helper.make_node("Where", [mask, nothing, constant], [bias], name=bias),
            onnx.helper.make_node("Add", [source, bias], [last.output[0]], name=name),
        ]
    for node in nodes:
        editor.insert(node, before=last)
    editor.remove(last)


def _narrowed(editor: Editor, mask: str, source: str) -> str:
    """The mask before it was widened to the shape of `source`, to which Where widens it by itself."""
    node = editor.producer(mask)
    if node is None or node.op_type != "And":
        return mask
    for wide, narrow in _inputs(node):
        ones = editor.producer(wide)
        if ones is None or ones.op_type != "Expand":
            continue
        value = editor.constant(ones.input[0])
        if value is not None and value.all() and _is_shape_of(editor, ones.input[1], source):
            return narrow
    return mask


def _is_shape_of(editor: Editor, name: str, source: str) -> bool:
    node = editor.producer(name)
    while node is not None and node.op_type == "Cast":
        node = editor.producer(node.input[0])
    return node is not None and node.op_type == "Shape" and node.input[0] == source and not node.attribute


def _orders(
    editor: Editor, node: onnx.NodeProto, one: str, other: str
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """The makers of a node's two inputs, in each order in which they are of these operators."""
    for first, second in _inputs(node):
        makers = editor.producer(first), editor.producer(second)
        if makers[0] is not None and makers[1] is not None and (makers[0].op_type, makers[1].op_type) == (one, other):
            yield makers[0], makers[1]


def _with_constant(
    editor: Editor, node: onnx.NodeProto, kind: str
) -> Iterator[tuple[onnx.NodeProto, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]]:
    """The maker of one input, an operator of this kind, with the other input, a constant."""
    for name, other in _inputs(node):
        maker, constant = editor.producer(name), editor.constant(other)
        if maker is not None and maker.op_type == kind and constant is not None:
            yield maker, constant


def _inputs(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    """Both orders of the inputs of a node that does not mind."""
    if len(node.input) == 2:
        first, second = node.input
        yield first, second
        yield second, first
