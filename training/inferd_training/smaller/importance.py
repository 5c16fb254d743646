"""Which channels matter least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from inferd_training.fit import Examples

NORM = "l1"
TAYLOR = "taylor"
MEASURES = (NORM, TAYLOR)

TAYLOR_BATCHES = 32
"""The mean is of so many batches at most: a whole pass would take as long as an epoch."""


def by_norm(model: keras.Model, names: Sequence[str]) -> Mapping[str, NDArray[np.float64]]:
    """The sum of the absolute weights of each channel, [width] by layer: one with small weights says little.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets".
    """
    kernels = {name: model.get_layer(name).get_weights()[0].astype(np.float64) for name in names}
    return {name: np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1))) for name, kernel in kernels.items()}


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
            tf.add_n(
                [
                    # An embedding's gradient has the rows that were looked up alone.
                    tf.reduce_sum(weight * tf.convert_to_tensor(gradient), axis=list(range(len(weight.shape) - 1)))
                    for weight, gradient in zip(*pairs, strict=True)
                ]
            )
            for pairs in zip(weights, gradients, strict=True)
        ]

    total = {name: np.zeros(layer.get_weights()[0].shape[-1]) for name, layer in zip(names, layers, strict=True)}
    for start in range(0, min(len(examples[0]), TAYLOR_BATCHES * batch_size), batch_size):
        found = contributions(*(tf.constant(part[start : start + batch_size]) for part in examples))
        for name, sums in zip(names, found, strict=True):
            total[name] += sums.numpy().astype(np.float64) ** 2
    return total
