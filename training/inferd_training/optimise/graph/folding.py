"""Scales and offsets go into the weights of the Conv, Gemm or MatMul behind or before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from inferd_training.optimise.graph import affine, linear, movement
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.linear import Linear
from inferd_training.optimise.graph.nodes import title
from inferd_training.optimise.graph.offsets import why_not

Array = NDArray[np.float64]


def fold_behind(editor: Editor) -> tuple[int, list[str]]:
    """Folds batch normalisations, scales and offsets into the Conv, Gemm or MatMul whose result they take.

    Reshapes and Transposes may lie between. Gives how many nodes it took out, and notes.
    """
    folded: Counter[str] = Counter()
    into = set[str]()
    for node in list(editor.nodes):
        while (unit := linear.read(editor, node)) is not None and (operator := _fold_one_behind(editor, unit)):
            folded[operator] += 1
            into.add(node.output[0])
    if not folded:
        return 0, []
    what = ", ".join(f"{count} {operator}" for operator, count in sorted(folded.items()))
    return folded.total(), [f"folded {what} into the weights and biases of {len(into)} nodes before them"]


def _fold_one_behind(editor: Editor, unit: Linear) -> str | None:
    """The operator that was folded; None where there is none to fold."""
    name, between = unit.result, list[onnx.NodeProto]()
    while (user := editor.only_user(name)) is not None and movement.moves(user) and user.input[0] == name:
        between.append(user)
        name = user.output[0]
    found = None if user is None else affine.read(editor, user)
    if user is None or found is None or found.source != name:
        return None
    scale, offset = found.scale, found.offset
    for node in reversed(between):
        carried = [movement.backward(editor, node, array) for array in (scale, offset)]
        if carried[0] is None or carried[1] is None:
            return None
        scale, offset = carried[0], carried[1]
    vectors = _channels(scale, offset, unit, unit.channels_out)
    if vectors is None or (vectors[1].any() and not unit.takes_bias):
        return None
    unit.scale_output(vectors[0])
    unit.offset_output(vectors[1])
    if not unit.write(editor):
        return None
    editor.bypass(user, name)
    return str(user.op_type)


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """Nodes before a Linear, the nearest first; the last one scales or shifts. What all of them do to `root`."""

    path: tuple[onnx.NodeProto, ...]
    root: str
    scale: Array
    offset: Array


def fold_before(editor: Editor) -> tuple[int, list[str]]:
    """Folds scales and offsets of what a Conv, Gemm or MatMul takes into it: preprocessing, mostly.

    Reshapes and Transposes may lie between. Gives how many nodes it took out or made simpler, and notes, which also say
    why an offset stays.
    """
    count, notes = 0, list[str]()
    for node in list(editor.nodes):
        unit = linear.read(editor, node)
        if unit is None:
            continue
        changed, note = _fold_one_before(editor, unit)
        count += changed
        notes.extend([note] if note else [])
    return count, notes


def _fold_one_before(editor: Editor, unit: Linear) -> tuple[int, str | None]:
    path, root, shared = _walk(editor, unit)
    if shared is not None:
        return 0, f"{title(shared)} before {title(unit.node)} stays: other nodes use its result too"
    if _is_normalised(editor, root):
        return 0, None
    for length in range(len(path), 0, -1):
        chain = _chain(editor, path[:length])
        if chain is None:
            continue
        vectors = _channels(chain.scale, chain.offset, unit, unit.channels_in)
        if vectors is not None:
            return _fold_chain(editor, unit, chain, *vectors)
    return 0, None


def _walk(editor: Editor, unit: Linear) -> tuple[list[onnx.NodeProto], str, onnx.NodeProto | None]:
    """The nodes before a Linear that scale, shift or move, the nearest first, each used by the next one only.

    Also the tensor that they start from, and the node that scales or shifts but is used elsewhere, if that ends them.
    """
    path, name = list[onnx.NodeProto](), unit.data
    while (node := editor.producer(name)) is not None:
        found = affine.read(editor, node)
        if found is None and not movement.moves(node):
            break
        if editor.only_user(name) is None:
            return path, name, node if found is not None and not path else None
        path.append(node)
        name = found.source if found else node.input[0]
    return path, name, None


def _chain(editor: Editor, path: list[onnx.NodeProto]) -> _Chain | None:
    """What a path computes; None where it does not start with a scale or an offset, or its moves cannot be followed."""
    first = affine.read(editor, path[-1])
    if first is None:
        return None
    scale, offset = first.scale, first.offset
    for node in reversed(path[:-1]):
        found = affine.read(editor, node)
        if found is not None:
            scale, offset = scale * found.scale, offset * found.scale + found.offset
            continue
        carried = [movement.forward(editor, node, array) for array in (scale, offset)]
        if carried[0] is None or carried[1] is None:
            return None
        scale, offset = carried[0], carried[1]
    return _Chain(tuple(path), first.source, scale, offset)


def _fold_chain(editor: Editor, unit: Linear, chain: _Chain, scale: Array, offset: Array) -> tuple[int, str | None]:
    affines = [node for node in chain.path if not movement.moves(node)]
    what = " and ".join(dict.fromkeys(title(node) for node in reversed(affines)))
    reason = why_not(editor, unit, chain.root, scale, offset)
    if reason is None:
        unit.offset_input(offset)
        unit.scale_input(scale)
        if not unit.write(editor):
            return 0, f"{what} before {title(unit.node)} stays: its weights' dtype cannot hold them scaled"
        _take_out(editor, affines)
        return len(affines), f"folded {what} into the weights of {title(unit.node)}"
    if (scale == 1).all() or not scale.all():
        return 0, f"{what} before {title(unit.node)} stays: {reason}"
    return _fold_scale_only(editor, unit, chain, scale, affines, what, reason)


def _fold_scale_only(
    editor: Editor, unit: Linear, chain: _Chain, scale: Array, affines: list[onnx.NodeProto], what: str, reason: str
) -> tuple[int, str | None]:
    """x * scale + offset = (x + offset / scale) * scale: the second scale goes into the weights, the rest is an Add."""
    nearest = affines[0]
    shortened = _chain(editor, list(chain.path[chain.path.index(nearest) :]))
    assert shortened is not None
    unit.scale_input(scale)
    if not unit.write(editor):
        return 0, f"{what} before {title(unit.node)} stays: its weights' dtype cannot hold them scaled"
    last = affine.read(editor, nearest)
    assert last is not None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(editor.element_type(nearest.output[0]))
    added = (shortened.offset / shortened.scale).astype(dtype)
    name = editor.add_constant(added, f"{nearest.output[0]}_offset")
    nearest.CopyFrom(onnx.helper.make_node("Add", [last.source, name], nearest.output[:1], name=nearest.name))
    editor.changed()
    _take_out(editor, affines[1:])
    note = f"folded the scale of {what} into the weights of {title(unit.node)}; the offset stays: {reason}"
    return len(affines), note


def _take_out(editor: Editor, affines: Iterable[onnx.NodeProto]) -> None:
    for node in affines:
        found = affine.read(editor, node)
        if found is not None:
            editor.bypass(node, found.source)


def _channels(scale: Array, offset: Array, unit: Linear, channels: int) -> tuple[Array, Array] | None:
    """Both as [channels]; None where they differ along another axis than that of the channels."""
    axis = unit.channel_axis(scale.ndim)
    vectors = [_along(array, axis, channels) for array in (scale, offset)]
    if vectors[0] is None or vectors[1] is None:
        return None
    return vectors[0], vectors[1]


def _along(array: Array, axis: int, extent: int) -> Array | None:
    one = array[tuple(slice(None) if i == axis else slice(0, 1) for i in range(array.ndim))]
    if not (array == one).all():
        return None
    return np.broadcast_to(one.reshape(-1), (extent,))


def _is_normalised(editor: Editor, name: str) -> bool:
    """Whether a tensor is a product or quotient of two tensors, as in a layer normalisation.

    What scales and shifts it then belongs to a pattern that runtimes run as one node, which costs less than it does.
    """
    node = editor.producer(name)
    return node is not None and node.op_type in ("Mul", "Div") and affine.read(editor, node) is None
