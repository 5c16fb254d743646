"""Training: from a verified data set and a family to a fitted model, the same on every run.

The test examples are not touched here: what the curves show besides the fitted examples is the validation part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from inferd_training.data.dataset import Dataset, Part
from inferd_training.errors import ModelError
from inferd_training.families.family import Family, Scaling
from inferd_training.progress import Progress, Silent

Examples = tuple[NDArray[Any], NDArray[Any]]
"""Inputs as the model takes them, and what it shall answer; axis 0 is the example."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The hyper-parameters. `learning_rate` is the peak; it falls to 0 along a half cosine over all steps."""

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A fitted model, its history (loss, accuracy, val_loss, val_accuracy: a figure an epoch each), and its seconds."""

    model: keras.Model
    history: dict[str, list[float]]
    seconds: float


def settings(
    family: Family,
    *,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    seed: int = 0,
) -> Settings:
    """The family's hyper-parameters, with what is given in their place. Raises ModelError for one out of range."""
    if optimizer not in family.learning_rates:
        raise ModelError(
            f"'{optimizer}' is not an optimizer of {family.name}: choose from {', '.join(family.learning_rates)}"
        )
    chosen = Settings(
        epochs=family.epochs if epochs is None else epochs,
        batch_size=family.batch_size if batch_size is None else batch_size,
        optimizer=optimizer,
        learning_rate=family.learning_rates[optimizer] if learning_rate is None else learning_rate,
        seed=seed,
    )
    if chosen.epochs < 1 or chosen.batch_size < 1:
        raise ModelError(
            f"{chosen.epochs} epochs in batches of {chosen.batch_size} were asked for: both must be at least 1"
        )
    if not (math.isfinite(chosen.learning_rate) and chosen.learning_rate > 0):
        raise ModelError(f"the learning rate {chosen.learning_rate} was asked for: it must be positive and finite")
    if not 0 <= chosen.seed < 2**32:
        raise ModelError(f"the seed {chosen.seed} was asked for: it must lie between 0 and 4294967295")
    return chosen


def train(data: Dataset, family: Family, chosen: Settings, progress: Progress | None = None) -> Trained:
    """Builds and fits a model. Two runs on one machine with the same settings give the same weights, bit for bit.

    Raises ModelError where the loss or a weight is not finite: the learning rate was too high.
    """
    seed_all(chosen.seed)
    fitted, validation = data.split(chosen.seed)
    return fit(
        family.build(len(data.labels)),
        examples(fitted, family.preprocessing),
        examples(validation, family.preprocessing),
        chosen,
        progress,
    )


def seed_all(seed: int) -> None:
    """Seeds Python, numpy and TensorFlow, and has TensorFlow compute the same way each time from now on."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def fit(
    model: keras.Model,
    fitted: Examples,
    validation: Examples,
    chosen: Settings,
    progress: Progress | None = None,
    *,
    loss: str | Callable[[Any, Any], Any] = "sparse_categorical_crossentropy",
    accuracy: str | keras.metrics.Metric = "accuracy",
) -> Trained:
    """Fits `model`, which is compiled anew, and keeps its weights of the last epoch.

    `accuracy` is a metric of that name. Raises ModelError where the loss or a weight is not finite: the learning rate
    was too high.
    """
    steps = chosen.epochs * math.ceil(len(fitted[0]) / chosen.batch_size)
    model.compile(optimizer=_optimizer(chosen, steps), loss=loss, metrics=[accuracy])
    started = time.perf_counter()
    history = model.fit(
        *fitted,
        batch_size=chosen.batch_size,
        epochs=chosen.epochs,
        validation_data=validation,
        shuffle=True,
        verbose=0,
        callbacks=[_Report(progress or Silent()), keras.callbacks.TerminateOnNaN()],
    )
    seconds = time.perf_counter() - started
    figures = {name: [float(value) for value in values] for name, values in history.history.items()}
    # A rectifier makes 0 of NaN on some machines, so that the loss may be finite where the weights no longer are.
    for what, finite in (
        ("loss is", all(math.isfinite(value) for value in figures["loss"])),
        ("weights are", all(np.isfinite(weight).all() for weight in model.get_weights())),
    ):
        if not finite:
            raise ModelError(f"the {what} not finite with the learning rate {chosen.learning_rate}: choose a lower one")
    return Trained(model, figures, seconds)


def examples(part: Part, preprocessing: Mapping[str, Scaling]) -> Examples:
    """A part of the data as a model with that preprocessing takes it. A model of this package has one input."""
    scaling = next(iter(preprocessing.values()), None)
    return (part.inputs if scaling is None else scaling.apply(part.inputs), part.truth)


def _optimizer(chosen: Settings, steps: int) -> keras.optimizers.Optimizer:
    rate = keras.optimizers.schedules.CosineDecay(chosen.learning_rate, steps)
    if chosen.optimizer == "sgd":
        return keras.optimizers.SGD(rate)
    return keras.optimizers.Adam(rate)


class _Report(keras.callbacks.Callback):  # type: ignore[misc]
    """Hands Keras's events on to a Progress."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - Keras passes it
        self._progress.start_epoch(epoch + 1, self.params["epochs"], self.params["steps"])

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - ditto
        self._progress.step(float((logs or {})["loss"]))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:  # noqa: ARG002 - ditto
        figures = logs or {}
        self._progress.end_epoch(
            f"loss {figures['loss']:.4f}  accuracy {figures['accuracy']:.4f}  "
            f"validation loss {figures['val_loss']:.4f}  validation accuracy {figures['val_accuracy']:.4f}"
        )
