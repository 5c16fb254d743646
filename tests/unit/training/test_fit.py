"""Training: the reference network, the same weights on every run, settings that are refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inferd_training import fit
from inferd_training.data import datasets
from inferd_training.data.dataset import Dataset, Part
from inferd_training.errors import ModelError
from inferd_training.families.registry import FAMILIES
from keras import layers

CNN = FAMILIES["cnn"]


@pytest.fixture
def data(data_folder: Path) -> Dataset:
    return datasets.load("mnist", data_folder)


def test_the_reference_network() -> None:
    model = CNN.build(10)
    assert [(tensor.name, tensor.shape) for tensor in model.inputs] == [("image", (None, 28, 28, 1))]
    kinds = [type(layer) for layer in model.layers[1:]]
    expected = [layers.Conv2D, layers.MaxPooling2D, layers.Conv2D, layers.MaxPooling2D, layers.Flatten, layers.Dense]
    assert kinds == [*expected, layers.Dense]
    assert model.layers[-1].name == "probabilities"
    # 32*(3*3*1+1) + 64*(3*3*32+1) + 128*(5*5*64+1) + 10*(128+1)
    assert model.count_params() == 320 + 18496 + 204928 + 1290


def test_two_runs_give_the_same_weights_and_another_seed_others(data: Dataset) -> None:
    def weights(seed: int) -> list[np.ndarray]:
        chosen = fit.settings(CNN, epochs=2, batch_size=8, seed=seed)
        return list(fit.train(data, CNN, chosen).model.get_weights())

    first, second, other = weights(3), weights(3), weights(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_it_learns_and_reports_each_epoch(data: Dataset, optimizer: str) -> None:
    heard: list[str] = []

    class Listener:
        def start_epoch(self, epoch: int, epochs: int, batches: int) -> None:
            heard.append(f"{epoch}/{epochs} of {batches}")

        def step(self, loss: float) -> None:
            assert loss > 0

        def end_epoch(self, summary: str) -> None:
            assert "validation accuracy" in summary

    chosen = fit.settings(
        CNN, epochs=8, batch_size=8, optimizer=optimizer, learning_rate={"adam": 3e-3, "sgd": 0.1}[optimizer]
    )
    trained = fit.train(data, CNN, chosen, Listener())
    # 48 images, of which 4 are held out.
    assert heard == [f"{epoch}/8 of 6" for epoch in range(1, 9)]
    assert trained.history["loss"][-1] < trained.history["loss"][0] / 2
    assert set(trained.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_the_test_images_play_no_part(data: Dataset) -> None:
    chosen = fit.settings(CNN, epochs=1, batch_size=8)
    other = replace(data, test=Part(255 - data.test.inputs, data.test.truth[::-1]))
    assert fit.train(data, CNN, chosen).history == fit.train(other, CNN, chosen).history


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "0 epochs"),
        ({"batch_size": 0}, "batches of 0"),
        ({"learning_rate": 0.0}, "learning rate 0.0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"seed": -1}, "seed -1"),
        ({"optimizer": "lion"}, "'lion' is not an optimizer of cnn: choose from adam, sgd"),
    ],
)
def test_settings_out_of_range_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fit.settings(CNN, **given)  # type: ignore[arg-type]


def test_a_training_that_diverges_is_refused(data: Dataset) -> None:
    chosen = fit.settings(CNN, epochs=2, batch_size=8, optimizer="sgd", learning_rate=1e30)
    diverged = r"(loss is|weights are) not finite with the learning rate 1e\+30: choose a lower one"
    with pytest.raises(ModelError, match=diverged):
        fit.train(data, CNN, chosen)
