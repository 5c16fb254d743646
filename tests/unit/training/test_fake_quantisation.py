"""Rounding to 8 bits with gradients, and the model that comes out of training with it."""

from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from inferd_training import fit
from inferd_training.errors import ModelError
from inferd_training.export import convert
from inferd_training.export.runtime import Runtime
from inferd_training.families.registry import FAMILIES
from inferd_training.smaller.fake_quantisation import quantised_activations, quantised_weights
from inferd_training.smaller.finetune import finetune, plain, quantised
from keras import layers

CHOSEN = fit.settings(FAMILIES["cnn"], epochs=3, batch_size=8, learning_rate=2e-3)


def test_weights_are_whole_multiples_of_each_channels_own_scale() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[..., 2] *= 1000
    kernel[..., 4] = 0
    rounded = quantised_weights(tf.constant(kernel)).numpy()
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    for channel in range(4):
        steps = rounded[..., channel] / (largest[channel] / 127)
        assert steps == pytest.approx(np.round(steps), abs=1e-3)
        assert np.abs(steps).max() == pytest.approx(127)
        assert np.abs(rounded - kernel)[..., channel].max() <= largest[channel] / 254 * 1.001
    assert not rounded[..., 4].any()
    # What is rounded stays where it is.
    assert quantised_weights(tf.constant(rounded)).numpy() == pytest.approx(rounded, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.floats(-100, 100), st.floats(-100, 100))
def test_activations_have_256_levels_of_which_zero_is_one(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    values = np.linspace(-150, 150, 3001, dtype=np.float32)
    rounded = quantised_activations(tf.constant(values), np.float32(low), np.float32(high)).numpy()
    assert len(np.unique(rounded)) <= 256
    scale = (max(high, 0) - min(low, 0)) / 255
    if scale < 1e-6:
        return
    assert np.abs(rounded).min() == 0
    # Within the range to half a step, and a little more where the range was moved; beyond it, its ends.
    inside = (values >= min(low, 0) + scale) & (values <= max(high, 0) - scale)
    assert np.abs(rounded - values)[inside].max(initial=0) <= scale / 2 + 1e-4
    assert min(low, 0) - scale <= rounded.min()
    assert rounded.max() <= max(high, 0) + scale


def test_gradients_go_straight_through() -> None:
    kernel = tf.Variable(np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32))
    weights = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(quantised_weights(kernel) * weights)
    # As if nothing had been rounded: also for each channel's largest weight, on which its scale depends.
    assert np.array_equal(tape.gradient(value, kernel).numpy(), weights)


def test_what_is_cut_off_has_no_gradient() -> None:
    values = tf.Variable(np.array([-3, -0.5, 0, 0.3, 0.99, 1.2, 50], np.float32))
    low, high = tf.Variable(-1.0), tf.Variable(1.0)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(quantised_activations(values, low, high))
    assert tape.gradient(value, values).numpy().tolist() == [0, 1, 1, 1, 1, 0, 0]


def classifier() -> keras.Model:
    keras.utils.set_random_seed(3)
    image = keras.Input((6, 6, 1), name="image")
    hidden = layers.Conv2D(6, 3, use_bias=False, name="conv")(image)
    hidden = layers.ReLU()(layers.BatchNormalization(name="norm")(hidden))
    hidden = layers.Dropout(0.1)(layers.Flatten()(hidden))
    hidden = layers.Dense(8, activation="relu", name="dense")(hidden)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="probabilities")(hidden))


def images(count: int, seed: int) -> fit.Examples:
    """The brightest pair of rows is the class."""
    generator = np.random.default_rng(seed)
    truth = (np.arange(count) % 3).astype(np.uint8)
    inputs = generator.uniform(0, 0.5, (count, 6, 6, 1)).astype(np.float32)
    for image, label in zip(inputs, truth, strict=True):
        image[2 * label : 2 * label + 2] += 0.4
    return inputs, truth


def test_it_learns_and_comes_out_plain(tmp_path: Path) -> None:
    model = classifier()
    before = model.get_weights()
    made = finetune(model, images(96, 0), images(24, 1), CHOSEN)
    assert made.quantised == ("conv", "dense", "probabilities")
    assert made.left == {}
    assert len(made.trained.history["loss"]) == 3
    assert made.trained.history["loss"][-1] < made.trained.history["loss"][0]
    tuned = made.trained.model
    # The same layers as before, with other weights; it is loaded by whoever has Keras and nothing of ours.
    assert [type(layer) for layer in tuned.layers] == [type(layer) for layer in model.layers]
    assert [layer.name for layer in tuned.layers] == [layer.name for layer in model.layers]
    assert not np.array_equal(before[0], tuned.get_weights()[0])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    tuned.save(tmp_path / "tuned.keras")
    loaded = keras.saving.load_model(tmp_path / "tuned.keras", custom_objects={}, safe_mode=True)
    rows = images(8, 2)[0]
    assert np.array_equal(loaded.predict(rows, verbose=0), tuned.predict(rows, verbose=0))


def test_rounding_is_put_in_and_taken_out_without_a_trace() -> None:
    model = classifier()
    rows = images(32, 0)[0]
    rounded = quantised(model, rows)
    answers = rounded.predict(rows, verbose=0)
    assert not np.array_equal(answers, model.predict(rows, verbose=0))
    assert answers == pytest.approx(model.predict(rows, verbose=0), abs=0.02)
    back = plain(model, rounded)
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), back.get_weights(), strict=True))
    # The ranges are those of the calibration's inputs, and only training moves them.
    conv = rounded.get_layer("conv")
    assert (float(conv.low), float(conv.high)) == (rows.min(), rows.max())
    conv(2 * rows, training=True)
    assert float(conv.high) == pytest.approx(1.01 * rows.max())


def test_the_rounding_is_that_of_the_runtime(tmp_path: Path) -> None:
    """ONNX Runtime's static quantisation of the same model, with the same calibration, gives the same answers."""
    from onnxruntime import quantization

    model = classifier()
    model.get_layer("norm").set_weights([np.random.default_rng(4).uniform(0.5, 2, 6).astype(np.float32)] * 4)
    rows = images(32, 5)[0]
    onnx.save(convert.convert(model, {}), tmp_path / "plain.onnx")

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter([{"image": rows}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._rows, None)

    quantization.quantize_static(
        tmp_path / "plain.onnx",
        tmp_path / "int8.onnx",
        Rows(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
    )
    int8 = Runtime(tmp_path / "int8.onnx").run({"image": rows}, 32)["probabilities"]
    floats = model.predict(rows, verbose=0)
    rounded = quantised(model, rows).predict(rows, verbose=0)
    # The runtime rounds the last layer's output as well, which is a step more.
    assert np.abs(rounded - int8).max() < np.abs(floats - int8).max()
    assert rounded == pytest.approx(int8, abs=0.01)


def test_a_model_with_nothing_to_round_is_refused() -> None:
    series = keras.Input((4, 3), name="series")
    model = keras.Model(series, layers.LSTM(3, activation="softmax", name="memory")(series))
    with pytest.raises(ModelError, match="no layer of the model is a convolution or a dense layer"):
        finetune(model, images(8, 0), images(4, 1), CHOSEN)


def test_a_loss_that_is_not_finite_stops_it() -> None:
    wild = fit.settings(FAMILIES["cnn"], epochs=3, batch_size=8, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(ModelError, match=r"(loss is|weights are) not finite"):
        finetune(classifier(), images(96, 0), images(24, 1), wild)
