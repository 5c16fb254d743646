"""Which channels of a model can go, and the model without them.

A channel is one filter of a convolution, one unit of a dense or recurrent layer or one feature of an embedding. It can
go where all that its output reaches can do without it: what works on each channel for itself passes it on, up to the
layers that sum over channels and lose a slice of their weights with it. What meets other channels on the way (an
addition, an attention, a layer that is not known here) keeps the whole layer as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from inferd_training.smaller.graph import Call, Graph, copy
from inferd_training.smaller.recurrent import Weights, cell, groups, is_recurrent, without_inputs, without_units

ELEMENTWISE = frozenset(
    {
        *("celu", "elu", "gelu", "leaky_relu", "mish", "relu", "relu6", "selu", "silu"),
        *("exponential", "hard_sigmoid", "hard_silu", "linear", "sigmoid", "softplus", "softsign", "tanh"),
    }
)
"""Keras's activations that work on each value for itself. Softmax, which mixes them, is not among them."""

_CHANNELWISE = frozenset(
    {
        *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity),
        *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D),
        *(layers.GaussianDropout, layers.GaussianNoise),
        *(layers.AveragePooling1D, layers.GlobalAveragePooling1D, layers.MaxPooling1D, layers.GlobalMaxPooling1D),
        *(layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.MaxPooling2D, layers.GlobalMaxPooling2D),
        *(layers.Cropping1D, layers.UpSampling1D, layers.ZeroPadding1D),
        *(layers.Cropping2D, layers.UpSampling2D, layers.ZeroPadding2D),
    }
)
"""Layers without weights that work on each channel for itself."""

_CONVOLUTIONS = frozenset({layers.Conv1D, layers.Conv2D})
_SUMS = frozenset({*_CONVOLUTIONS, layers.Dense})
"""Layers whose kernel [..., channels before, channels] sums over the channels before."""

_WIDTH = {layers.Dense: "units", layers.Conv1D: "filters", layers.Conv2D: "filters", layers.Embedding: "output_dim"}
"""What a layer that can be pruned calls the number of its channels."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a layer behind a channel loses with it: `repeat` elements of its last input axis.

    That is 1, or as many as there were places when the channel was flattened. `sums`: the layer sums over them, else it
    has weights for each.
    """

    layer: str
    repeat: int
    sums: bool


@dataclass(frozen=True, slots=True)
class Prunable:
    """A layer of `width` channels that can go, and what their going does to others.

    In both directions of a recurrent layer, two `groups`, there are as many, and as many stay.
    """

    layer: str
    width: int
    effects: tuple[Effect, ...]
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Channels:
    """What can be pruned of a model, by layer and in the order of computation, and why the other layers are left."""

    prunable: tuple[Prunable, ...]
    left: Mapping[str, str]


def find(model: keras.Model) -> Channels:
    """Looks at every layer with weights.

    Raises ModelError for a model that is no graph of layers.
    """
    search = _Search(Graph(model))
    prunable, left = [], {}
    for layer in search.graph.layers():
        if type(layer) in (layers.BatchNormalization, layers.DepthwiseConv2D):
            # It has as many channels as what comes before it.
            continue
        try:
            prunable.append(search.prunable(layer))
        except _Left as reason:
            left[layer.name] = str(reason)
    return Channels(tuple(prunable), left)


class _Left(Exception):
    """Why a layer is left as it is."""


@dataclass(frozen=True, slots=True)
class _Search:
    graph: Graph

    def prunable(self, layer: Any) -> Prunable:
        """What the going of a layer's channels would do. Raises _Left where they cannot go."""
        recurrent = is_recurrent(layer)
        if type(layer) in _CONVOLUTIONS:
            _check_convolution(layer)
        elif type(layer) not in _WIDTH and not recurrent:
            raise _Left(f"a {type(layer).__name__} layer is not pruned")
        call = self._single(layer)
        if len(call.outputs) != 1:
            raise _Left(f"'{layer.name}' has {len(call.outputs)} outputs")
        if len(call.inputs) != 1:
            raise _Left(f"'{layer.name}' begins with a state that it is given")
        effects = tuple(self._effects(call.outputs[0], 1))
        if hasattr(cell(layer), "activation"):
            _check_activation(cell(layer))
        width = getattr(cell(layer), _WIDTH.get(type(layer), "units"))
        return Prunable(layer.name, int(width), effects, groups(layer))

    def _single(self, layer: Any) -> Call:
        calls = self.graph.of(layer)
        if len(calls) != 1:
            raise _Left(f"'{layer.name}' is called {len(calls)} times")
        return calls[0]

    def _effects(self, tensor: Any, repeat: int) -> list[Effect]:
        """What the channels in a tensor's last axis reach. Raises _Left where they cannot go."""
        if self.graph.is_output(tensor):
            raise _Left("its channels are an output of the model")
        effects = []
        for call in self.graph.readers(tensor):
            layer = call.operation
            kind = type(layer)
            if len(call.inputs) != 1 or not isinstance(layer, layers.Layer):
                raise _Left(f"its channels meet others in '{layer.name}'")
            self._single(layer)
            _check_format(layer)
            if kind in _SUMS or is_recurrent(layer):
                if kind in _CONVOLUTIONS:
                    _check_convolution(layer)
                effects.append(Effect(layer.name, repeat, sums=True))
                continue
            if kind is layers.Flatten:
                effects += self._effects(call.outputs[0], repeat * _places(tensor, layer.name))
                continue
            if _has_weights_by_channel(layer, tensor):
                effects.append(Effect(layer.name, repeat, sums=False))
            elif kind is layers.Activation:
                _check_activation(layer)
            elif kind not in _CHANNELWISE or getattr(layer, "noise_shape", None) is not None:
                raise _Left(f"'{layer.name}', a {kind.__name__} layer, is not known to leave channels apart")
            effects += self._effects(call.outputs[0], repeat)
        return effects


def _check_convolution(layer: Any) -> None:
    if layer.groups != 1:
        raise _Left(f"'{layer.name}' has {layer.groups} groups")
    _check_format(layer)


def _check_format(layer: Any) -> None:
    if getattr(layer, "data_format", None) == "channels_first":
        raise _Left(f"'{layer.name}' has its channels first")


def _check_activation(layer: Any) -> None:
    for activation in (layer.activation, getattr(layer, "recurrent_activation", None)):
        name = getattr(activation, "__name__", type(activation).__name__)
        if activation is not None and (
            getattr(keras.activations, name, None) is not activation or name not in ELEMENTWISE
        ):
            raise _Left(f"the activation {name} of '{layer.name}' is not known to leave channels apart")


def _has_weights_by_channel(layer: Any, tensor: Any) -> bool:
    if type(layer) is layers.BatchNormalization:
        if layer.axis not in (-1, len(tensor.shape) - 1):
            raise _Left(f"'{layer.name}' normalises axis {layer.axis}, not the channels")
        return True
    if type(layer) is layers.DepthwiseConv2D:
        _check_activation(layer)
        if layer.depth_multiplier != 1:
            raise _Left(f"'{layer.name}' makes {layer.depth_multiplier} channels of one")
        return True
    return False


def _places(tensor: Any, flatten: str) -> int:
    places = tensor.shape[1:-1]
    if None in places:
        raise _Left(f"'{flatten}' flattens an axis whose length is free")
    return math.prod(places)


def resized(model: keras.Model, widths: Mapping[str, int]) -> keras.Model:
    """The same graph with fresh weights, in which the layers named have so many channels."""

    def replace(layer: layers.Layer, config: dict[str, Any]) -> None:
        if type(layer) is layers.Bidirectional:
            for direction in ("layer", "backward_layer"):
                # It names the width of the inputs that it had, which may be another one now.
                config[direction].pop("build_config", None)
                config[direction]["config"]["units"] = widths.get(layer.name, cell(layer).units)
        elif layer.name in widths:
            config[_WIDTH.get(type(layer), "units")] = widths[layer.name]

    return copy(model, replace)


def pruned(model: keras.Model, channels: Channels, kept: Mapping[str, NDArray[np.intp]]) -> keras.Model:
    """The model with only the channels `kept`, ascending indices by prunable layer; layers not named keep all.

    Those of a second group are counted on from the first's, and as many.

    All weights but those of what is gone are the model's own, so that nothing else changes: a channel that was always 0
    is not missed.
    """
    changed = [entry for entry in channels.prunable if entry.layer in kept]
    smaller = resized(model, {entry.layer: len(kept[entry.layer]) // entry.groups for entry in changed})
    behind: dict[str, tuple[NDArray[np.intp], bool]] = {}
    for entry in changed:
        for effect in entry.effects:
            elements = _elements(kept[entry.layer], entry.groups * entry.width, effect.repeat)
            behind[effect.layer] = (elements, effect.sums)
    for layer in smaller.layers:
        whole = model.get_layer(layer.name)
        weights = whole.get_weights()
        if not weights:
            continue
        if layer.name in behind:
            weights = _without_inputs(whole, weights, *behind[layer.name])
        if layer.name in kept:
            weights = _without_channels(whole, weights, kept[layer.name])
        layer.set_weights(weights)
    return smaller


def _elements(kept: NDArray[np.intp], width: int, repeat: int) -> NDArray[np.intp]:
    """The elements of a flattened axis that belong to the channels kept: a place has its channels beside each other."""
    return (np.arange(repeat)[:, np.newaxis] * width + kept).ravel()


def _without_channels(layer: Any, weights: Weights, kept: NDArray[np.intp]) -> Weights:
    if is_recurrent(layer):
        return without_units(layer, weights, kept)
    return [weight[..., kept] for weight in weights]


def _without_inputs(layer: Any, weights: Weights, elements: NDArray[np.intp], sums: bool) -> Weights:
    """A layer's weights for those elements of its last input axis.

    A kernel has that axis last but one, be it of a convolution, a depthwise one or a dense layer; a vector of a
    normalisation or a bias has it alone.
    """
    if is_recurrent(layer):
        return without_inputs(layer, weights, elements)
    return [weight[..., elements, :] if weight.ndim > 1 else weight if sums else weight[elements] for weight in weights]
