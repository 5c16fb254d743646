"""Fine-tuning for INT8: a model is trained on while its weights and activations are rounded as 8 bits will round them.

What comes out is the plain model again, whose weights lie where rounding does little harm: the post-training
quantisation of the export's runtime then loses less accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from inferd_training import fit
from inferd_training.errors import ModelError
from inferd_training.fit import Examples
from inferd_training.progress import Progress
from inferd_training.smaller.fake_quantisation import QUANTISED
from inferd_training.smaller.graph import Graph, copy, copy_weights

CALIBRATION_ROWS = 1024
"""Training examples whose activations give the ranges to start from."""


@dataclass(frozen=True, slots=True, eq=False)
class FineTuned:
    """The plain model, trained; the layers that were rounded; the kinds of the layers with weights that were not."""

    trained: fit.Trained
    quantised: tuple[str, ...]
    left: Mapping[str, str]


def finetune(
    model: keras.Model,
    fitted: Examples,
    validation: Examples,
    chosen: fit.Settings,
    *,
    progress: Progress | None = None,
) -> FineTuned:
    """Trains a classifier on with rounding, and takes the rounding away again. The history is with rounding.

    Raises ModelError where no layer can be rounded, or the loss is not finite.
    """
    fit.seed_all(chosen.seed)
    rounded = quantised(model, fitted[0][:CALIBRATION_ROWS])
    trained = fit.fit(rounded, fitted, validation, chosen, progress)
    names = tuple(layer.name for layer in rounded.layers if type(layer) in QUANTISED.values())
    left = {
        layer.name: f"a {type(layer).__name__} layer stays in floating point"
        for layer in Graph(model).layers()
        if layer.name not in names and not isinstance(layer, keras.layers.BatchNormalization)
    }
    return FineTuned(fit.Trained(plain(model, rounded), trained.history, trained.seconds), names, left)


def quantised(model: keras.Model, calibration: NDArray[Any]) -> keras.Model:
    """The same model with rounding in every layer that can have it, its ranges those of the inputs `calibration`.

    Raises ModelError where there is no such layer.
    """
    ranges = _ranges(model, calibration)
    if not ranges:
        raise ModelError("no layer of the model is a convolution or a dense layer: only those are fine-tuned for INT8")

    def replace(layer: keras.layers.Layer, config: dict[str, Any]) -> keras.layers.Layer | None:
        kind = QUANTISED.get(type(layer))
        return None if kind is None else kind.from_config(config)

    rounded = copy(model, replace)
    for layer in rounded.layers:
        weights = model.get_layer(layer.name).get_weights()
        if type(layer) in QUANTISED.values():
            layer.set_weights([*weights, *ranges[layer.name]])
        elif weights:
            layer.set_weights(weights)
    return rounded


def plain(model: keras.Model, rounded: keras.Model) -> keras.Model:
    """The model with the weights that training left in its copy with rounding."""
    fresh = copy(model, lambda _layer, _config: None)
    copy_weights(rounded, fresh)
    return fresh


def _ranges(model: keras.Model, calibration: NDArray[Any]) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """The smallest and the largest input of each layer that can be rounded, by layer."""
    graph = Graph(model)
    names, ends = [], []
    for call in graph.calls:
        if type(call.operation) in QUANTISED:
            (tensor,) = call.inputs
            axes = tuple(range(1, len(tensor.shape)))
            names.append(call.operation.name)
            ends += [ops.min(tensor, axis=axes), ops.max(tensor, axis=axes)]
    if not names:
        return {}
    (given,) = model.inputs
    found = keras.Model(given, ends).predict(calibration, batch_size=256, verbose=0)
    ranges: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for name, low, high in zip(names, found[::2], found[1::2], strict=True):
        earlier = ranges.get(name, (low.min(), high.max()))
        ranges[name] = (np.minimum(earlier[0], low.min()), np.maximum(earlier[1], high.max()))
    return ranges
