"""Pruning on arrays: measures of importance, the schedule, and what is refused."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from inferd_training import fit
from inferd_training.errors import ModelError
from inferd_training.families.registry import FAMILIES
from inferd_training.fit import Examples
from inferd_training.smaller.cost import cost
from inferd_training.smaller.importance import by_norm, by_taylor
from inferd_training.smaller.prune import Pruning, prune, shares
from inferd_training.smaller.widths import remaining
from keras import layers

CHOSEN = fit.settings(FAMILIES["cnn"], epochs=6, batch_size=16, learning_rate=5e-3)
SHORT = replace(CHOSEN, epochs=1)


def blobs(count: int, seed: int) -> Examples:
    """Three classes of points around three centres, in eight dimensions of which two tell them apart."""
    generator = np.random.default_rng(seed)
    truth = (np.arange(count) % 3).astype(np.uint8)
    inputs = generator.normal(0, 0.4, (count, 8)).astype(np.float32)
    inputs[:, :2] += np.array([[2, 0], [-2, 0], [0, 2]], np.float32)[truth]
    return inputs, truth


def network() -> keras.Model:
    keras.utils.set_random_seed(1)
    value = keras.Input((8,), name="features")
    hidden = layers.Dense(16, activation="relu", name="first")(value)
    hidden = layers.Dense(12, activation="relu", name="second")(hidden)
    return keras.Model(value, layers.Dense(3, activation="softmax", name="probabilities")(hidden))


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    return fit.fit(network(), blobs(240, 0), blobs(60, 1), CHOSEN).model


def train(model: keras.Model, chosen: fit.Settings) -> fit.Trained:
    return fit.fit(model, blobs(240, 0), blobs(60, 1), chosen)


def accuracy(model: keras.Model, examples: Examples) -> float:
    return float((model.predict(examples[0], verbose=0).argmax(axis=1) == examples[1]).mean())


def test_the_norm_is_the_sum_of_absolute_weights() -> None:
    model = network()
    kernel = model.get_layer("first").get_weights()[0]
    assert by_norm(model, ["first"])["first"] == pytest.approx([np.abs(kernel[:, unit]).sum() for unit in range(16)])


def test_taylor_is_what_the_loss_loses(trained: keras.Model) -> None:
    """Against finite differences: a channel's weights times (1 - h) change the loss by -h times the sum of w dL/dw."""
    examples = blobs(32, 2)
    found = by_taylor(trained, ["first", "second"], examples, 32)
    assert {name: len(values) for name, values in found.items()} == {"first": 16, "second": 12}
    layer = trained.get_layer("second")
    weights = layer.get_weights()

    def loss(factor: float, unit: int) -> float:
        changed = [weight.copy() for weight in weights]
        for weight in changed:
            weight[..., unit] *= factor
        layer.set_weights(changed)
        answers = trained.predict(examples[0], verbose=0).astype(np.float64)
        return float(-np.log(answers[np.arange(32), examples[1]]).mean())

    try:
        for unit in range(12):
            slope = (loss(1.01, unit) - loss(0.99, unit)) / 0.02
            assert found["second"][unit] == pytest.approx(slope**2, rel=0.05, abs=1e-8)
    finally:
        layer.set_weights(weights)


def test_most_go_early_and_all_at_the_end() -> None:
    assert shares(0.6, 1) == [0.6]
    steps = shares(0.5, 4)
    assert steps[-1] == 0.5
    assert np.all(np.diff(steps) > 0)
    assert np.all(np.diff(np.diff([0, *steps])) < 0)


def test_what_is_left_is_a_whole_multiple() -> None:
    assert [remaining(128, share, 16) for share in (0.0, 0.05, 0.1, 0.3, 0.5, 0.99)] == [128, 128, 112, 96, 64, 16]
    # A layer of no more than one is not rounded.
    assert [remaining(10, share, 16) for share in (0.0, 0.5, 0.99)] == [10, 5, 1]
    assert [remaining(44, share, 16) for share in (0.3, 0.01)] == [32, 44]
    assert remaining(33, 0.5, 1) == 16


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_half_of_a_network_answers_as_well(trained: keras.Model, importance: str) -> None:
    told: list[str] = []
    before = trained.get_weights()
    made = prune(trained, blobs(240, 0), CHOSEN, Pruning(0.5, 3, importance), train, tell=told.append)
    assert made.widths == {"first": (16, 8), "second": (12, 6)}
    assert made.left == {"probabilities": "its channels are an output of the model"}
    # An epoch after each of the first two steps, the other four after the last.
    assert len(made.trained.history["val_accuracy"]) == 6
    assert [line.split(":")[0] for line in told] == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    smaller = made.trained.model
    assert (cost(smaller).parameters, cost(smaller).bytes) == (8 * 9 + 6 * 9 + 3 * 7, 4 * (8 * 9 + 6 * 9 + 3 * 7))
    assert cost(smaller).multiply_adds == 8 * 8 + 8 * 6 + 6 * 3
    assert accuracy(smaller, blobs(300, 3)) > 0.95
    # The model that was pruned is as it was.
    assert all(np.array_equal(a, b) for a, b in zip(before, trained.get_weights(), strict=True))


@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_a_recurrent_network_is_pruned_and_trained_on(importance: str) -> None:
    keras.utils.set_random_seed(0)
    series = keras.Input((8,), name="features")
    hidden = layers.Reshape((4, 2))(series)
    hidden = layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both")(hidden)
    hidden = layers.GRU(8, name="last")(hidden)
    model = keras.Model(series, layers.Dense(3, activation="softmax", name="probabilities")(hidden))
    chosen = replace(CHOSEN, learning_rate=1e-2)
    train(model, chosen)
    assert accuracy(model, blobs(300, 3)) > 0.95
    made = prune(model, blobs(240, 0), chosen, Pruning(0.5, 2, importance, 2), train)
    assert made.widths == {"both": (8, 4), "last": (8, 4)}
    assert accuracy(made.trained.model, blobs(300, 3)) > 0.95


def test_two_prunings_give_the_same_weights(trained: keras.Model) -> None:
    first, second = (
        prune(trained, blobs(48, 0), SHORT, Pruning(0.5, 1, "taylor"), train).trained.model.get_weights()
        for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("pruning", "message"),
    [
        (Pruning(0.0, 1, "l1"), "sparsity 0.0 was asked for: it must lie between 0 and 1"),
        (Pruning(1.0, 1, "l1"), "sparsity 1.0"),
        (Pruning(-0.5, 1, "l1"), "sparsity -0.5"),
        (Pruning(float("nan"), 1, "l1"), "sparsity nan"),
        (Pruning(0.01, 1, "l1"), "the sparsity 0.01 takes no channel of layers with 16, 12"),
        (Pruning(0.5, 0, "l1"), "0 steps in 6 epochs"),
        (Pruning(0.5, 7, "l1"), "7 steps in 6 epochs"),
        (Pruning(0.5, 1, "l1", 0), "multiples of 0 channels"),
        (Pruning(0.5, 1, "magic"), "'magic' is no measure of importance: choose from l1, taylor"),
    ],
)
def test_what_cannot_be_done_is_refused(trained: keras.Model, pruning: Pruning, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        prune(trained, blobs(48, 0), CHOSEN, pruning, train)


def test_a_model_without_a_prunable_layer_is_refused() -> None:
    value = keras.Input((8,), name="features")
    model = keras.Model(value, layers.Dense(3, activation="softmax", name="probabilities")(value))
    with pytest.raises(ModelError, match=r"can be pruned \('probabilities': its channels are an output"):
        prune(model, blobs(48, 0), CHOSEN, Pruning(0.5, 1, "l1"), train)


def test_a_loss_that_is_not_finite_stops_it(trained: keras.Model) -> None:
    wild = fit.settings(FAMILIES["cnn"], epochs=3, batch_size=16, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(ModelError, match=r"(loss is|weights are) not finite"):
        prune(trained, blobs(240, 0), wild, Pruning(0.5, 2, "l1"), train)


def test_the_cost_of_layers_that_are_counted_and_of_those_that_are_not() -> None:
    image = keras.Input((8, 8, 3), name="image")
    hidden = layers.Conv2D(4, 3, name="conv")(image)
    hidden = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(layers.BatchNormalization()(hidden))
    hidden = layers.Reshape((36, 4))(hidden)
    inner = keras.Sequential([keras.Input((36, 4)), layers.Dense(2, name="within")], name="tower")
    found = cost(keras.Model(image, layers.LSTM(5, name="memory")(inner(hidden))))
    # An LSTM has four gates, each of which sums over what comes in and over its own state, in each of 36 steps.
    assert found.multiply_adds == 36 * 4 * 27 + 36 * 4 * 9 + 36 * 2 * 4 + 36 * 4 * 5 * (2 + 5)
    assert found.uncounted == ()
    series = keras.Input((10, 4), name="series")
    both = cost(keras.Model(series, layers.Bidirectional(layers.GRU(6))(series)))
    assert both.multiply_adds == 2 * 10 * 3 * 6 * (4 + 6)
    series = keras.Input((None, 4), name="series")
    hidden = layers.LSTM(4, return_sequences=True, name="memory")(series)
    free = cost(keras.Model(series, layers.Dense(3, name="dense")(layers.UnitNormalization(name="norm")(hidden))))
    assert (free.multiply_adds, free.uncounted) == (0, ("memory", "dense"))
