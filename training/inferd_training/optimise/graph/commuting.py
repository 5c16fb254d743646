"""A Transpose behind a reshape, put in front of it where it then meets another one, or leaves two reshapes together."""

from __future__ import annotations

import onnx

from inferd_training.optimise.graph import movement
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.extents import Extent, extent
from inferd_training.optimise.graph.reshaping import make_reshape, target_of
from inferd_training.optimise.graph.shapes import Shape


def transpose_first(editor: Editor, node: onnx.NodeProto) -> bool:
    """Swaps a Transpose with the reshape before it that merges axes or puts in axes of one element. Whether it did."""
    source = node.input[0]
    before, axes = editor.producer(source), movement.permutation(editor, node)
    if before is None or before.op_type not in movement.RESHAPES or axes is None:
        return False
    if not movement.moves(before) or editor.only_user(source) is not node:
        return False
    old, between, new = (editor.shape(name) for name in (before.input[0], source, node.output[0]))
    blocks = None if old is None or between is None else _blocks(old, between)
    if old is None or new is None or blocks is None:
        return False
    moved = [axis for place in axes for axis in blocks[place]]
    shape = tuple(old[axis] for axis in moved)
    target = target_of(shape, new)
    if target is None or not _is_worth_it(editor, before, node, moved):
        return False
    name = editor.fresh(node.output[0])
    editor.describe(name, shape, editor.element_type(source))
    transposed = onnx.helper.make_node(
        "Transpose", before.input[:1], [name], name=f"{node.name}_first" if node.name else "", perm=moved
    )
    editor.insert(transposed, before=node)
    make_reshape(editor, node, name, target)
    editor.remove(before)
    return True


def _is_worth_it(editor: Editor, before: onnx.NodeProto, node: onnx.NodeProto, moved: list[int]) -> bool:
    earlier, later = editor.producer(before.input[0]), editor.only_user(node.output[0])
    meets_another = (
        earlier is not None and earlier.op_type == "Transpose" and editor.only_user(before.input[0]) is before
    )
    leaves_two_reshapes = later is not None and later.op_type in movement.RESHAPES
    return meets_another or leaves_two_reshapes or moved == sorted(moved)


def _blocks(old: Shape, new: Shape) -> list[list[int]] | None:
    """For each new axis the old axes, side by side, that it was merged of; none for a new axis of one element.

    None where an old axis was split, or an extent is not known.
    """
    blocks: list[list[int]] = []
    place = 0
    for wanted in map(extent, new):
        block, merged = list[int](), Extent(1)
        while merged != wanted:
            one = extent(old[place]) if place < len(old) else None
            if wanted is None or one is None:
                return None
            block.append(place)
            merged = merged * one
            place += 1
        blocks.append(block)
    if any(one != 1 for one in old[place:]) or not blocks:
        return None
    blocks[-1].extend(range(place, len(old)))
    return blocks
