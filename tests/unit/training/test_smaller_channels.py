"""Channels that go: what is not needed is not missed, bit for bit; what cannot go is left, and said why."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
from inferd_training.errors import ModelError
from inferd_training.families.registry import FAMILIES
from inferd_training.smaller import channels
from inferd_training.smaller.importance import by_norm
from inferd_training.smaller.prune import most
from keras import layers


def plain() -> keras.Model:
    """The reference family's kind, with two places for each channel that is flattened, and more between the layers."""
    image = keras.Input((8, 7, 1), name="image")
    hidden = layers.Conv2D(8, 3, activation="relu", name="conv1")(image)
    hidden = layers.MaxPooling2D(2, name="pool")(hidden)
    hidden = layers.SpatialDropout2D(0.2)(hidden)
    hidden = layers.Conv2D(12, 2, padding="same", name="conv2")(hidden)
    hidden = layers.Activation("relu")(hidden)
    hidden = layers.ZeroPadding2D(1)(hidden)
    hidden = layers.Dropout(0.5)(layers.Flatten(name="flatten")(hidden))
    hidden = layers.Dense(16, activation="relu", name="dense")(hidden)
    return keras.Model(image, layers.Dense(3, name="logits")(hidden))


def normalised() -> keras.Model:
    """Batch normalisations before and behind a flattening, one without scale, and layers without a bias."""
    # The variance plus epsilon is 4, so that the arithmetic below stays exact.
    options = {"epsilon": 3.0}
    return keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            layers.Conv2D(8, 3, use_bias=False, name="conv1"),
            layers.BatchNormalization(**options, name="norm1"),
            layers.LeakyReLU(0.5),
            layers.Flatten(),
            layers.BatchNormalization(**options, scale=False, name="norm2"),
            layers.Dense(8, use_bias=False, name="dense"),
            layers.BatchNormalization(**options, center=False, name="norm3"),
            layers.ReLU(),
            layers.Dense(3, name="logits"),
        ]
    )


def separable() -> keras.Model:
    """A depthwise convolution goes with the channels before it, and one output is read twice."""
    image = keras.Input((6, 6, 3), name="image")
    hidden = layers.Conv2D(8, 1, activation="relu", name="expand")(image)
    hidden = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(hidden)
    left = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 1, activation="relu", name="left")(hidden))
    right = layers.GlobalMaxPooling2D()(layers.Conv2D(4, 1, activation="relu", name="right")(hidden))
    return keras.Model(image, layers.Dense(2, name="logits")(layers.Concatenate(name="joined")([left, right])))


def whole_numbers(model: keras.Model, generator: np.random.Generator) -> None:
    """Weights with which float32 is exact: no sum depends on its order."""
    for layer in model.layers:
        layer.set_weights(
            [generator.integers(-2, 3, weight.shape).astype(np.float32) for weight in layer.get_weights()]
        )
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_variance.assign(np.ones(layer.moving_variance.shape))


def silence(model: keras.Model, found: channels.Channels, kept: dict[str, np.ndarray]) -> None:
    """Makes every channel that is not kept 0, whatever its input, up to the layers that sum over it."""
    for entry in found.prunable:
        gone = np.setdiff1d(np.arange(entry.groups * entry.width), kept[entry.layer])
        layer = model.get_layer(entry.layer)
        weights = layer.get_weights()
        for number, weight in enumerate(weights):
            # Of each gate of a recurrent layer; the weights of a second direction come behind those of the first.
            columns = weight.reshape(*weight.shape[:-1], -1, entry.width)
            direction = number * entry.groups // len(weights)
            columns[..., gone[gone // entry.width == direction] % entry.width] = 0
        layer.set_weights(weights)
        for effect in entry.effects:
            behind = model.get_layer(effect.layer)
            if effect.sums:
                continue
            for variable in (getattr(behind, name, None) for name in ("beta", "moving_mean", "bias")):
                if variable is not None:
                    value = np.array(variable)
                    value.reshape(effect.repeat, entry.width)[:, gone] = 0
                    variable.assign(value)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("build", "widths"),
    [
        (plain, {"conv1": 8, "conv2": 12, "dense": 16}),
        (normalised, {"conv1": 8, "dense": 8}),
        (separable, {"expand": 8}),
    ],
)
def test_channels_that_are_zero_are_not_missed(
    build: Callable[[], keras.Model], widths: dict[str, int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    model = build()
    whole_numbers(model, generator)
    found = channels.find(model)
    assert {entry.layer: entry.width for entry in found.prunable} == widths
    kept = {name: np.sort(generator.permutation(width)[: width // 2 + 1]) for name, width in widths.items()}
    silence(model, found, kept)
    # Where a channel's weights are all 0 its norm is the smallest, so that the measure finds what was made silent.
    for name, importance in by_norm(model, list(widths)).items():
        assert set(np.flatnonzero(importance)) <= set(kept[name])
    images = generator.integers(-3, 4, (16, *model.inputs[0].shape[1:])).astype(np.float32)

    smaller = channels.pruned(model, found, kept)
    assert np.array_equal(model.predict(images, verbose=0), smaller.predict(images, verbose=0))
    assert np.abs(model.predict(images, verbose=0)).max() > 0

    # What is left can be pruned again, and has the shapes that it says.
    assert {entry.layer: entry.width for entry in channels.find(smaller).prunable} == {
        name: width // 2 + 1 for name, width in widths.items()
    }
    assert smaller.count_params() < model.count_params()
    assert type(smaller) is type(model)
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]


def test_a_flattened_channel_is_one_element_of_each_place() -> None:
    model = plain()
    whole_numbers(model, np.random.default_rng(0))
    found = channels.find(model)
    (entry,) = (entry for entry in found.prunable if entry.layer == "conv2")
    # 8x7, less 2, halved, padded by 1: 5x4 places.
    assert entry.effects == (channels.Effect("dense", 20, sums=True),)
    kept = np.array([1, 4, 11])
    smaller = channels.pruned(model, found, {"conv2": kept})
    kernel = model.get_layer("dense").get_weights()[0]
    assert smaller.get_layer("dense").get_weights()[0].shape == (60, 16)
    by_place = kernel.reshape(20, 12, 16)[:, kept]
    assert np.array_equal(smaller.get_layer("dense").get_weights()[0].reshape(20, 3, 16), by_place)
    assert np.array_equal(smaller.get_layer("conv2").get_weights()[1], model.get_layer("conv2").get_weights()[1][kept])
    # What was not named is as it was.
    assert np.array_equal(smaller.get_layer("conv1").get_weights()[0], model.get_layer("conv1").get_weights()[0])


def test_removing_what_speaks_changes_the_answer() -> None:
    model = plain()
    generator = np.random.default_rng(0)
    whole_numbers(model, generator)
    images = generator.integers(-3, 4, (16, 8, 7, 1)).astype(np.float32)
    smaller = channels.pruned(model, channels.find(model), {"conv1": np.arange(4)})
    assert not np.array_equal(model.predict(images, verbose=0), smaller.predict(images, verbose=0))


def residual() -> keras.Model:
    image = keras.Input((6, 6, 4), name="image")
    hidden = layers.Conv2D(8, 3, padding="same", activation="relu", name="inner")(image)
    hidden = layers.Conv2D(4, 3, padding="same", name="outer")(hidden)
    hidden = layers.Add(name="add")([image, hidden])
    hidden = layers.Conv2D(4, 3, groups=2, name="grouped")(hidden)
    hidden = layers.Conv2D(6, 1, name="before_normalisation")(hidden)
    hidden = layers.LayerNormalization(name="layer_norm")(hidden)
    hidden = layers.Flatten()(hidden)
    hidden = layers.Dense(5, activation="softmax", name="mixed")(hidden)
    hidden = layers.Dense(5, activation="relu", name="before_shared")(hidden)
    shared = layers.Dense(5, name="shared")
    hidden = shared(shared(hidden))
    hidden = layers.Dense(4, name="sliced")(hidden)[:, :2]
    return keras.Model(image, layers.Dense(2, name="logits")(hidden))


def test_what_cannot_go_is_left_and_named() -> None:
    found = channels.find(residual())
    assert [entry.layer for entry in found.prunable] == ["inner"]
    assert found.left == {
        "outer": "its channels meet others in 'add'",
        "grouped": "'grouped' has 2 groups",
        "before_normalisation": "'layer_norm', a LayerNormalization layer, is not known to leave channels apart",
        "layer_norm": "a LayerNormalization layer is not pruned",
        "mixed": "the activation softmax of 'mixed' is not known to leave channels apart",
        "before_shared": "'shared' is called 2 times",
        "shared": "'shared' is called 2 times",
        "sliced": found.left["sliced"],
        "logits": "its channels are an output of the model",
    }
    assert "its channels meet others in 'get_item" in found.left["sliced"]


def test_the_most_important_are_kept_in_their_order() -> None:
    assert most(np.array([3.0, 9.0, 1.0, 9.0, 2.0]), 3).tolist() == [0, 1, 3]
    assert most(np.ones(4), 2).tolist() == [0, 1]


def test_what_is_left_is_carried_over() -> None:
    """Bare operations, shared layers and layers that cannot be pruned are in the smaller model as they were."""
    model = residual()
    found = channels.find(model)
    smaller = channels.pruned(model, found, {"inner": np.arange(8)[::2]})
    # What goes is made silent in the model, too.
    kernel, bias = model.get_layer("inner").get_weights()
    kernel[..., 1::2], bias[1::2] = 0, 0
    model.get_layer("inner").set_weights([kernel, bias])
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)
    assert smaller.predict(images, verbose=0) == pytest.approx(model.predict(images, verbose=0), abs=1e-5)


def tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 257, (8, 128)).astype(np.int32)


def test_a_transformer_loses_the_inner_units_of_its_blocks() -> None:
    model = FAMILIES["transformer"].build(3)
    found = channels.find(model)
    assert [entry.layer for entry in found.prunable] == ["embedding", "widen1", "widen2"]
    assert "attention1" in found.left
    kept = {entry.layer: np.arange(entry.width)[: entry.width // 2] for entry in found.prunable}
    smaller = channels.pruned(model, found, kept)
    silence(model, found, kept)
    rows = tokens(0)
    assert smaller.predict(rows, verbose=0) == pytest.approx(model.predict(rows, verbose=0), abs=1e-5)
    assert smaller.get_layer("embedding").output_dim == 32


def recurrent(**both_directions: str) -> keras.Model:
    """Layers that read each other's units: with every kind of bias, and with another way back."""
    series = keras.Input((7, 3), name="series")
    hidden = layers.GRU(8, return_sequences=True, name="reset_after")(series)
    hidden = layers.GRU(6, return_sequences=True, reset_after=False, use_bias=False, name="reset_before")(hidden)
    there = layers.LSTM(5, return_sequences=True)
    hidden = layers.Bidirectional(there, name="both", **both_directions)(hidden)
    hidden = layers.LSTM(6, go_backwards=True, return_sequences=True, name="back")(hidden)
    hidden = layers.SimpleRNN(4, name="last")(hidden)
    return keras.Model(series, layers.Dense(2, name="logits")(hidden))


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "ave", "mul"])
def test_units_of_recurrent_layers_go_with_all_their_gates(merge_mode: str) -> None:
    model = recurrent(merge_mode=merge_mode)
    generator = np.random.default_rng(0)
    # An initial bias is 0 but for some gates.
    for weights in model.weights:
        weights.assign(generator.normal(size=weights.shape))
    found = channels.find(model)
    widths = {"reset_after": 8, "reset_before": 6, "both": 5, "back": 6, "last": 4}
    assert {entry.layer: entry.width for entry in found.prunable} == widths
    kept = {
        entry.layer: np.concatenate(
            [
                group * entry.width + np.sort(generator.permutation(entry.width)[: entry.width // 2 + 1])
                for group in range(entry.groups)
            ]
        )
        for entry in found.prunable
    }
    silence(model, found, kept)
    for name, importance in by_norm(model, list(widths)).items():
        assert set(np.flatnonzero(importance)) == set(kept[name])
    rows = generator.normal(size=(8, 7, 3)).astype(np.float32)
    smaller = channels.pruned(model, found, kept)
    assert smaller.predict(rows, verbose=0) == pytest.approx(model.predict(rows, verbose=0), abs=1e-5)
    assert np.abs(model.predict(rows, verbose=0)).max() > 0.1
    assert {entry.layer: entry.width for entry in channels.find(smaller).prunable} == {
        name: width // 2 + 1 for name, width in widths.items()
    }


def test_recurrent_layers_whose_units_mix_or_begin_elsewhere_are_left() -> None:
    series = keras.Input((7, 3), name="series")
    hidden, *state = layers.LSTM(4, return_sequences=True, return_state=True, name="state_out")(series)
    hidden = layers.LSTM(4, return_sequences=True, name="state_in")(hidden, initial_state=state)
    hidden = layers.GRU(4, recurrent_activation="softmax", name="mixed")(hidden)
    found = channels.find(keras.Model(series, layers.Dense(2, name="logits")(hidden)))
    assert found.prunable == ()
    assert found.left["state_out"] == "'state_out' has 3 outputs"
    assert found.left["state_in"] == "'state_in' begins with a state that it is given"
    assert found.left["mixed"] == "the activation softmax of 'mixed' is not known to leave channels apart"


def test_a_recurrent_network_is_built_narrower() -> None:
    model = FAMILIES["lstm"].build(3)
    found = channels.find(model)
    assert {entry.layer: entry.width for entry in found.prunable} == {"embedding": 64, "bidirectional": 64}
    narrow = channels.resized(model, {"embedding": 16, "bidirectional": 8})
    # Two directions, four gates: kernel, recurrent kernel, bias.
    assert narrow.get_layer("bidirectional").count_params() == 2 * 4 * 8 * (16 + 8 + 1)
    assert narrow.predict(tokens(1), verbose=0).shape == (8, 3)
    # Also where only what it reads is narrower.
    assert channels.resized(model, {"embedding": 16}).predict(tokens(1), verbose=0).shape == (8, 3)


def test_a_convolution_over_a_sequence_is_pruned() -> None:
    series = keras.Input((10, 2), name="series")
    hidden = layers.Conv1D(6, 3, activation="relu", name="first")(series)
    hidden = layers.Conv1D(4, 3, padding="causal", activation="relu", name="second")(layers.MaxPooling1D(2)(hidden))
    model = keras.Model(series, layers.Dense(2, name="logits")(layers.Flatten()(hidden)))
    generator = np.random.default_rng(0)
    whole_numbers(model, generator)
    found = channels.find(model)
    kept = {"first": np.array([0, 2, 5]), "second": np.array([1, 3])}
    silence(model, found, kept)
    rows = generator.integers(-3, 4, (8, 10, 2)).astype(np.float32)
    smaller = channels.pruned(model, found, kept)
    assert np.array_equal(model.predict(rows, verbose=0), smaller.predict(rows, verbose=0))


def test_a_nested_model_is_left_whole() -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="gate")], name="tower")
    value = keras.Input((6,), name="features")
    model = keras.Model(value, layers.Dense(2, name="score")(inner(layers.Dense(6, name="first")(value))))
    found = channels.find(model)
    assert found.prunable == ()
    assert found.left["first"] == "'tower', a Sequential layer, is not known to leave channels apart"
    assert found.left["tower"] == "a Sequential layer is not pruned"


def test_a_model_that_is_no_graph_is_refused() -> None:
    class Written(keras.Model):  # type: ignore[misc]
        def call(self, inputs: object) -> object:
            return inputs

    with pytest.raises(ModelError, match="where a graph of layers was expected"):
        channels.find(Written())
