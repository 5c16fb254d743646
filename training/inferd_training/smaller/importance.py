"""Which channels matter least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from inferd_training.fit import Examples
from inferd_training.smaller.recurrent import by_direction, gates, groups, is_recurrent

NORM = "l1"
TAYLOR = "taylor"
MEASURES = (NORM, TAYLOR)

TAYLOR_BATCHES = 32
"""The mean is of so many batches at most: a whole pass would take as long as an epoch."""


def by_norm(model: keras.Model, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
    """The sum of the absolute weights of each channel, [width] by layer: one with small weights says little.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets".
    """
    found = {}
    for name in names:
        layer = model.get_layer(name)
        # A kernel is the first weight, of each direction where a layer has two.
        kernels = [weights[0].astype(np.float64) for weights in by_direction(layer, layer.get_weights())]
        sums = [np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1))) for kernel in kernels]
        found[name] = _by_channel(layer, [tf.constant(each) for each in sums]).numpy()
    return found


def by_taylor(
    model: keras.Model, names: Sequence[str], examples: Examples, batch_size: int
) -> Mapping[str, NDArray[np.float64]]:
    """By how much the loss would change without each channel, to first order, [width] by layer.

    The square of the sum of weight times gradient over a channel's weights, averaged over batches (Molchanov et al.
    2019, "Importance Estimation for Neural Network Pruning", equation 8). The loss is the cross-entropy.
    """
    layers = [model.get_layer(name) for name in names]

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def contributions(inputs: tf.Tensor, truth: tf.Tensor) -> list[tf.Tensor]:
        weights = [[weight.value for weight in layer.weights] for layer in layers]
        with tf.GradientTape() as tape:
            # A layer that is not trained has an importance, too.
            tape.watch(weights)
            loss = keras.losses.sparse_categorical_crossentropy(truth, model(inputs, training=False))
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, weights)
        return [
            _by_channel(
                layer,
                [
                    # An embedding's gradient has the rows that were looked up alone.
                    tf.reduce_sum(weight * tf.convert_to_tensor(gradient), axis=list(range(len(weight.shape) - 1)))
                    for weight, gradient in zip(*pairs, strict=True)
                ],
            )
            for layer, *pairs in zip(layers, weights, gradients, strict=True)
        ]

    total: dict[str, NDArray[np.float64]] = {}
    for start in range(0, min(len(examples[0]), TAYLOR_BATCHES * batch_size), batch_size):
        found = contributions(*(tf.constant(part[start : start + batch_size]) for part in examples))
        for name, sums in zip(names, found, strict=True):
            total[name] = total.get(name, 0.0) + sums.numpy().astype(np.float64) ** 2
    return total


def _by_channel(layer: keras.layers.Layer, of_weights: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sums over a layer's weights, each a vector along their last axis, added up for each channel: [channels]."""
    directions = [tf.add_n(vectors) for vectors in by_direction(layer, of_weights)]
    if is_recurrent(layer):
        directions = [tf.reduce_sum(tf.reshape(each, (gates(layer), -1)), axis=0) for each in directions]
    return tf.concat(directions, axis=0) if groups(layer) > 1 else tf.add_n(directions)
