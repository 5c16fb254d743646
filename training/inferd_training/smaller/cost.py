"""What a model costs: parameters, bytes of weights, multiplications."""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras
from keras import layers

from inferd_training.smaller.graph import Call, Graph
from inferd_training.smaller.recurrent import by_direction, is_recurrent


@dataclass(frozen=True, slots=True)
class Cost:
    """`parameters` and their `bytes`, and the `multiply_adds` of convolutions, dense and recurrent layers for one row.

    `uncounted` names the layers whose multiplications are not in it: of another kind, or over an axis of free length.
    """

    parameters: int
    bytes: int
    multiply_adds: int
    uncounted: tuple[str, ...]


_FREE = (layers.BatchNormalization, layers.LayerNormalization, layers.Embedding)
"""No multiplications worth counting: the export folds the first into the layer before it, the last only looks up."""


def cost(model: keras.Model) -> Cost:
    """Raises ModelError for a model that is no graph of layers."""
    counted, uncounted = _multiply_adds(model)
    return Cost(
        parameters=model.count_params(),
        bytes=sum(array.nbytes for array in model.get_weights()),
        multiply_adds=counted,
        uncounted=uncounted,
    )


def _multiply_adds(model: keras.Model) -> tuple[int, tuple[str, ...]]:
    total, uncounted = 0, []
    for call in Graph(model).calls:
        layer = call.operation
        if isinstance(layer, keras.Model):
            inner, names = _multiply_adds(layer)
            total += inner
            uncounted += [f"{layer.name}/{name}" for name in names]
            continue
        if not isinstance(layer, layers.Layer) or not layer.weights or isinstance(layer, _FREE):
            continue
        found = _of(call)
        if found is None:
            uncounted.append(layer.name)
        else:
            total += found
    return total, tuple(dict.fromkeys(uncounted))


def _of(call: Call) -> int | None:
    layer = call.operation
    if is_recurrent(layer):
        steps = call.inputs[0].shape[1]
        # Every element of both kernels is used once a step; a bias is added.
        kernels = [direction[:2] for direction in by_direction(layer, layer.weights)]
        return None if steps is None else int(steps * sum(math.prod(each.shape) for pair in kernels for each in pair))
    if not isinstance(layer, layers.Dense | layers.Conv1D | layers.Conv2D | layers.DepthwiseConv2D):
        return None
    extents = call.outputs[0].shape[1:]
    if None in extents:
        return None
    # Each output element is the sum over a kernel's elements; only a depthwise kernel has none for other channels.
    kernel = layer.kernel.shape
    summed = kernel[:-2] if isinstance(layer, layers.DepthwiseConv2D) else kernel[:-1]
    return int(math.prod(extents) * math.prod(summed))
