"""Operators that the converter has taken apart, put together again: what ONNX has one node and one fast kernel for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute

_OPSET = 17
"""The first with LayerNormalization."""
_ALL = 1e30
"""What float32 keeps of a sum with such a number is that number, for any other below 2^24 times less."""


def join(editor: Editor) -> tuple[int, list[str]]:
    """Layer normalisations and selections by a mask; how many, and notes."""
    opset = next((entry.version for entry in editor.proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    normalised = sum(_normalise(editor, node) for node in list(editor.nodes)) if opset >= _OPSET else 0
    selected = sum(_select(editor, node) for node in list(editor.nodes))
    notes = [
        f"{what} ({count})"
        for what, count in (
            ("a mean, a variance and what they scale: one LayerNormalization", normalised),
            ("products with a mask and with its opposite: one Where", selected),
        )
        if count
    ]
    return normalised + selected, notes


def _normalise(editor: Editor, last: onnx.NodeProto) -> bool:
    """x m - mean(x) m + beta, where m = gamma / sqrt(variance + epsilon): as Keras's layer is converted."""
    if last.op_type != "Add":
        return False
    for scaled, shift in _orders(editor, last, "Mul", "Add"):
        for moved, beta in _with_constant(editor, shift, "Mul"):
            for source, factor in _inputs(scaled):
                found = _factor(editor, source, factor, moved)
                if found is None:
                    continue
                gamma, epsilon = found
                width = (editor.shape(source) or (None,))[-1]
                if not isinstance(width, int) or {gamma.size, beta.size} != {width}:
                    continue
                name = last.name or last.output[0]
                node = onnx.helper.make_node(
                    "LayerNormalization",
                    [source, editor.add_constant(gamma.ravel(), name), editor.add_constant(beta.ravel(), name)],
                    [last.output[0]],
                    name=name,
                    axis=-1,
                    epsilon=epsilon,
                )
                editor.insert(node, before=last)
                editor.remove(last)
                return True
    return False


def _factor(
    editor: Editor, source: str, factor: str, moved: onnx.NodeProto
) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.generic]], float] | None:
    """gamma and epsilon, where `factor` is gamma / sqrt(variance(source) + epsilon), and `moved` is -mean(source) times
    it."""
    product = editor.producer(factor)
    if product is None or product.op_type != "Mul":
        return None
    negative = [editor.producer(name) for name, other in _inputs(moved) if other == factor]
    if not negative or negative[0] is None or negative[0].op_type != "Neg":
        return None
    mean = negative[0].input[0]
    if not _is_mean(editor, mean, source):
        return None
    for reciprocal, gamma in _with_constant(editor, product, "Reciprocal"):
        root = editor.producer(reciprocal.input[0])
        if root is None or root.op_type != "Sqrt":
            return None
        total = editor.producer(root.input[0])
        if total is None or total.op_type != "Add":
            return None
        for name, other in _inputs(total):
            epsilon = editor.constant(other)
            if epsilon is not None and epsilon.size == 1 and _is_variance(editor, name, source, mean):
                return gamma, float(epsilon.ravel()[0])
    return None


def _is_variance(editor: Editor, name: str, source: str, mean: str) -> bool:
    node = editor.producer(name)
    if node is None or not node.input or not _is_mean(editor, name, node.input[0]):
        return False
    square = editor.producer(node.input[0])
    if square is None or square.op_type != "Mul" or square.input[0] != square.input[1]:
        return False
    centred = editor.producer(square.input[0])
    return centred is not None and centred.op_type == "Sub" and list(centred.input) == [source, mean]


def _is_mean(editor: Editor, name: str, source: str) -> bool:
    """Whether a tensor is the mean over the last axis of another, which it keeps."""
    node = editor.producer(name)
    if node is None or not node.input or node.input[0] != source:
        return False
    rank = len(editor.shape(source) or ())
    if node.op_type == "GlobalAveragePool":
        # Over all axes behind the second: over the last alone where there are three.
        return rank == 3
    if node.op_type != "ReduceMean" or attribute(node, "keepdims", 1) != 1:
        return False
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        given = editor.constant(node.input[1])
        axes = None if given is None else given.tolist()
    return axes is not None and list(axes) in ([-1], [rank - 1])


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
