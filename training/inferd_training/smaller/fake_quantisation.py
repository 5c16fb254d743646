"""What 8-bit integers do to weights and activations, in floating point and with gradients to train by.

The scheme is that of ONNX Runtime's static quantisation with scales per channel: weights symmetric in -127..127 with a
scale for each output channel, activations in 256 levels of one range for the whole tensor, which includes 0. A batch
normalisation that is folded into the kernel afterwards multiplies whole channels, and so leaves such rounding as it is.

Rounding has the gradient 0 almost everywhere, so that it is skipped on the way back: the straight-through estimator
(Bengio et al. 2013), used so by Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference". What lies outside an activation's range is cut off, and gets no gradient.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

WEIGHT_LEVELS = 127
"""Of each sign."""

ACTIVATION_LEVELS = 255
"""Steps between the ends of the range."""

MOMENTUM = 0.99
"""Of the moving averages of an activation's range: they follow the last hundred batches (Jacob et al. 2018, 3.1)."""


def straight_through(value: Any, replaced: Any) -> Any:
    """`replaced` forwards; backwards, the gradient goes to `value` unchanged."""
    return value + ops.stop_gradient(replaced - value)


def quantised_weights(kernel: Any) -> Any:
    """A kernel [..., channels] rounded to 8 bits, each channel to a scale of its own."""
    largest = ops.max(ops.abs(kernel), axis=tuple(range(len(kernel.shape) - 1)), keepdims=True)
    # A channel of zeros has no scale; any will do.
    scale = ops.stop_gradient(ops.where(largest > 0, largest / WEIGHT_LEVELS, 1.0))
    return straight_through(kernel, ops.round(kernel / scale) * scale)


def quantised_activations(values: Any, low: Any, high: Any) -> Any:
    """Values of any shape, cut off at the range from `low` to `high` and rounded to the nearest of 256 levels of it.

    The range is widened to hold 0, and moved by less than a level so that 0 is one: padding is 0.
    """
    low, high = ops.minimum(low, 0.0), ops.maximum(high, 0.0)
    scale = ops.where(high > low, (high - low) / ACTIVATION_LEVELS, 1.0)
    zero = ops.round(-low / scale)
    inside = ops.clip(values, -zero * scale, (ACTIVATION_LEVELS - zero) * scale)
    return straight_through(inside, ops.round(inside / scale) * scale)


class _Quantised(keras.layers.Layer):  # type: ignore[misc]
    """Before a layer with a kernel: rounds its kernel, and its inputs to a range that follows the batches it is trained
    on. The range starts where `start` says.
    """

    def build(self, input_shape: Any) -> None:
        """Adds the range to the layer's own weights, behind them."""
        super().build(input_shape)
        self.low = self.add_weight(name="low", shape=(), initializer="zeros", trainable=False)
        self.high = self.add_weight(name="high", shape=(), initializer="zeros", trainable=False)

    @property
    def kernel(self) -> Any:
        """The kernel as 8 bits hold it."""
        return quantised_weights(super().kernel)

    def start(self, low: float, high: float) -> None:
        """Sets the range."""
        self.low.assign(low)
        self.high.assign(high)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """The layer's output for rounded inputs; in training, the range moves first."""
        if training:
            self.low.assign(MOMENTUM * self.low + (1 - MOMENTUM) * ops.min(inputs))
            self.high.assign(MOMENTUM * self.high + (1 - MOMENTUM) * ops.max(inputs))
        return super().call(quantised_activations(inputs, self.low, self.high))


class QuantisedConv2D(_Quantised, keras.layers.Conv2D):  # type: ignore[misc]
    """A convolution with 8-bit weights and inputs."""


class QuantisedConv1D(_Quantised, keras.layers.Conv1D):  # type: ignore[misc]
    """The same along one axis."""


class QuantisedDense(_Quantised, keras.layers.Dense):  # type: ignore[misc]
    """A dense layer with 8-bit weights and inputs."""


QUANTISED = {
    keras.layers.Conv1D: QuantisedConv1D,
    keras.layers.Conv2D: QuantisedConv2D,
    keras.layers.Dense: QuantisedDense,
}
"""What takes the place of each layer that can be quantised, by its exact type."""
