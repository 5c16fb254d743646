"""Rows of a table by their numbers: without what Gather does by itself, and in the order in which they are needed."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute


def trust_indices(editor: Editor) -> tuple[int, list[str]]:
    """Gathers whose negative indices were turned into positive ones take them as they are; how many, and notes.

    ONNX counts an index in -n..-1 from the end, as Keras's `take` writes out. An index below -n, which is an error
    everywhere, is one now: what was written out would have counted it from the end twice.
    """
    count = 0
    for node in list(editor.nodes):
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx"):
            continue
        table = editor.shape(node.input[0])
        axis = int(attribute(node, "axis", 0))
        if table is None or not -len(table) <= axis < len(table):
            continue
        for index, rows in _wrapped(editor, node.input[1]):
            if table[axis] == rows:
                node.input[1] = index
                editor.changed()
                count += 1
                break
    editor.sweep()
    moved = sum(_order_first(editor, node) for node in list(editor.nodes))
    notes = [f"negative indices are left to Gather ({count})"] if count else []
    return count + moved, [*notes, *([f"indices are transposed instead of rows ({moved})"] if moved else [])]


def _order_first(editor: Editor, transpose: onnx.NodeProto) -> bool:
    """Whether the rows that a Gather took could be taken in the order into which a Transpose brings them."""
    gather = editor.producer(transpose.input[0]) if transpose.op_type == "Transpose" else None
    if gather is None or gather.op_type != "Gather" or attribute(gather, "axis", 0) != 0:
        return False
    order = list(attribute(transpose, "perm") or ())
    table, indices = editor.shape(gather.input[0]), editor.shape(gather.input[1])
    if table is None or indices is None or editor.only_user(gather.output[0]) is not transpose:
        return False
    axes = len(indices)
    if not order or order[axes:] != list(range(axes, axes + len(table) - 1)):
        return False
    source, result = gather.input[1], transpose.output[0]
    ordered = editor.fresh(source)
    editor.describe(ordered, tuple(indices[axis] for axis in order[:axes]), editor.element_type(source))
    first = onnx.helper.make_node("Transpose", [source], [ordered], name=ordered, perm=order[:axes])
    editor.insert(first, before=gather)
    gather.input[1] = ordered
    editor.remove(transpose)
    gather.output[0] = result
    editor.changed()
    return True


def _wrapped(editor: Editor, name: str) -> Iterator[tuple[str, int]]:
    """The index that a tensor is made of, and what is added to it where it is negative."""
    for mask, negative, index in _selected(editor, name):
        if not _is_negative(editor, mask, index):
            continue
        add = editor.producer(negative)
        if add is None or add.op_type != "Add":
            continue
        for one, other in _both(add):
            rows = editor.constant(other)
            if one == index and rows is not None and rows.size == 1:
                yield index, int(rows.reshape(()))


def _selected(editor: Editor, name: str) -> Iterator[tuple[str, str, str]]:
    """A mask, and what a tensor holds where it is set and where it is not: by a Where, or by two products and a sum."""
    node = editor.producer(name)
    if node is None:
        return
    if node.op_type == "Where":
        mask, chosen, rest = node.input
        yield mask, chosen, rest
    if node.op_type != "Add" or editor.is_float(name):
        return
    for first, second in _both(node):
        for mask, chosen in _masked(editor, first):
            for opposite, rest in _masked(editor, second):
                negation = editor.producer(opposite)
                if negation is not None and negation.op_type == "Not" and negation.input[0] == mask:
                    yield mask, chosen, rest


def _masked(editor: Editor, name: str) -> Iterator[tuple[str, str]]:
    """A mask and a tensor whose product this one is."""
    node = editor.producer(name)
    if node is None or node.op_type != "Mul":
        return
    for factor, other in _both(node):
        cast = editor.producer(factor)
        if cast is not None and cast.op_type == "Cast" and editor.element_type(cast.input[0]) == onnx.TensorProto.BOOL:
            yield cast.input[0], other


def _is_negative(editor: Editor, mask: str, index: str) -> bool:
    """Whether a mask says where an index, perhaps as another type, is below 0."""
    less = editor.producer(mask)
    if less is None or less.op_type != "Less":
        return False
    zero = editor.constant(less.input[1])
    source = less.input[0]
    cast = editor.producer(source)
    if source != index and cast is not None and cast.op_type == "Cast":
        source = cast.input[0]
    return source == index and zero is not None and not zero.any()


def _both(node: onnx.NodeProto) -> Iterator[tuple[str, str]]:
    if len(node.input) == 2:
        first, second = node.input
        yield first, second
        yield second, first
