"""Layer normalisations that were exported as their arithmetic, made the one operator that ONNX has since opset 17."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from inferd_training.optimise.graph.axes import axes_of
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute

_SINCE = 17


@dataclass(frozen=True, slots=True)
class _Core:
    """What all forms have: x, its mean, and 1 / sqrt(its variance + epsilon), by name; `less` is x - mean."""

    x: str
    mean: str
    less: str
    inverse: str
    epsilon: float
    channels: int


@dataclass(frozen=True, slots=True, eq=False)
class _Normalised:
    """The node that gives the result, and what is applied along the last axis, each None where nothing is."""

    last: onnx.NodeProto
    gamma: NDArray[np.float64] | None = None
    beta: NDArray[np.float64] | None = None


def fuse_normalisations(editor: Editor) -> tuple[int, list[str]]:
    """Makes LayerNormalization nodes, over the last axis, of their arithmetic. Gives how many, and notes."""
    count = 0
    for node in list(editor.nodes) if editor.opset >= _SINCE else ():
        core = _core(editor, node)
        found = None if core is None else (_as_keras(editor, core) or _direct(editor, core))
        if core is not None and found is not None:
            _replace(editor, core, found)
            count += 1
    return count, [f"made {count} LayerNormalization of the arithmetic in their places"] if count else []


def _core(editor: Editor, node: onnx.NodeProto) -> _Core | None:
    """The core that ends with this node."""
    if node.op_type != "Reciprocal":
        return None
    root = _made(editor, node.input[0], "Sqrt")
    sums = None if root is None else _made(editor, root.input[0], "Add")
    for variance, constant in () if sums is None else _either_way(sums):
        epsilon, squares = editor.constant(constant), _averaged(editor, variance)
        square = None if squares is None else _made(editor, squares, "Mul")
        if epsilon is None or epsilon.size != 1 or square is None or square.input[0] != square.input[1]:
            continue
        less = _made(editor, square.input[0], "Sub")
        if less is None or _averaged(editor, less.input[1]) != less.input[0]:
            continue
        x, mean = less.input
        channels = (editor.shape(x) or (None,))[-1]
        if isinstance(channels, int) and editor.is_float(x):
            return _Core(x, mean, less.output[0], node.output[0], float(epsilon.reshape(-1)[0]), channels)
    return None


def _averaged(editor: Editor, name: str) -> str | None:
    """What a tensor is the mean of, over the last axis, which it keeps."""
    pool = _made(editor, name, "GlobalAveragePool")
    if pool is not None:
        shape = editor.shape(pool.input[0])
        return str(pool.input[0]) if shape is not None and len(shape) == 3 else None
    mean = _made(editor, name, "ReduceMean")
    shape = None if mean is None else editor.shape(mean.input[0])
    if mean is None or shape is None or not attribute(mean, "keepdims", 1):
        return None
    return str(mean.input[0]) if axes_of(editor, mean) in ([-1], [len(shape) - 1]) else None


def _as_keras(editor: Editor, core: _Core) -> _Normalised | None:
    """x * factor + (beta - mean * factor), with factor = inverse * gamma: as batches are normalised."""
    for gamma, factor in [(None, core.inverse), *_with_constant(editor, core, core.inverse, "Mul")]:
        for product in editor.users(factor):
            if product.op_type != "Mul" or core.x not in product.input:
                continue
            for last in editor.users(product.output[0]):
                if last.op_type != "Add":
                    continue
                (shift,) = [name for name in last.input if name != product.output[0]] or [""]
                for beta, negative in _shifts(editor, core, shift):
                    if _is_negative(editor, core, negative, factor):
                        return _Normalised(last, gamma, beta)
    return None


def _shifts(editor: Editor, core: _Core, shift: str) -> Iterator[tuple[NDArray[np.float64] | None, str]]:
    yield None, shift
    added = _made(editor, shift, "Add")
    for negative, constant in () if added is None else _either_way(added):
        beta = _vector(editor, core, constant)
        if beta is not None:
            yield beta, negative


def _is_negative(editor: Editor, core: _Core, name: str, factor: str) -> bool:
    """Whether a tensor is -mean * factor."""
    product = _made(editor, name, "Mul")
    for left, right in () if product is None else _either_way(product):
        turned = _made(editor, left, "Neg")
        if turned is not None and turned.input[0] == core.mean and right == factor:
            return True
    return False


def _direct(editor: Editor, core: _Core) -> _Normalised | None:
    """(x - mean) * inverse, then gamma and beta, each where nothing else uses what it is applied to."""
    for last in editor.users(core.less):
        if last.op_type == "Mul" and core.inverse in last.input:
            gamma, last = _applied(editor, core, last, "Mul")
            beta, last = _applied(editor, core, last, "Add")
            return _Normalised(last, gamma, beta)
    return None


def _applied(
    editor: Editor, core: _Core, node: onnx.NodeProto, operator: str
) -> tuple[NDArray[np.float64] | None, onnx.NodeProto]:
    if editor.only_user(node.output[0]) is not None:
        for vector, result in _with_constant(editor, core, node.output[0], operator):
            return vector, _made(editor, result, operator) or node
    return None, node


def _with_constant(editor: Editor, core: _Core, name: str, operator: str) -> list[tuple[NDArray[np.float64], str]]:
    """The constants along the last axis that a tensor is multiplied by, or added to, with the results' names."""
    found = []
    for user in editor.users(name):
        if user.op_type == operator:
            for source, constant in _either_way(user):
                vector = _vector(editor, core, constant)
                if source == name and vector is not None:
                    found.append((vector, str(user.output[0])))
    return found


def _vector(editor: Editor, core: _Core, name: str) -> NDArray[np.float64] | None:
    """A constant as one value for each element of the last axis."""
    constant, shape = editor.constant(name), editor.shape(core.x)
    if constant is None or shape is None or constant.ndim > len(shape):
        return None
    if constant.size != 1 and (constant.size != core.channels or constant.shape[-1] != core.channels):
        return None
    return np.broadcast_to(constant.astype(np.float64).reshape(-1), (core.channels,))


def _replace(editor: Editor, core: _Core, found: _Normalised) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(editor.element_type(core.x))
    last = found.last
    gamma = np.ones(core.channels) if found.gamma is None else found.gamma
    inputs = [core.x, editor.add_constant(gamma.astype(dtype), f"{last.output[0]}_gamma")]
    if found.beta is not None:
        inputs.append(editor.add_constant(found.beta.astype(dtype), f"{last.output[0]}_beta"))
    fused = onnx.helper.make_node(
        "LayerNormalization", inputs, [last.output[0]], name=last.name, axis=-1, epsilon=core.epsilon
    )
    last.CopyFrom(fused)
    editor.changed()


def _made(editor: Editor, name: str, operator: str) -> onnx.NodeProto | None:
    """The node that makes a tensor, where it is of that operator."""
    node = editor.producer(name)
    return node if node is not None and node.op_type == operator and node.domain in ("", "ai.onnx") else None


def _either_way(node: onnx.NodeProto) -> tuple[tuple[str, str], tuple[str, str]]:
    left, right = node.input
    return (left, right), (right, left)
