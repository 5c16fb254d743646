"""Training: from a verified data set and a family to a fitted model, the same on every run.

The test images are not touched here: what the curves show besides the training images is a part held out from them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from inferd_training.data.datasets import ImageData
from inferd_training.errors import ModelError
from inferd_training.families.family import Family
from inferd_training.progress import Progress, Silent

VALIDATION_PART = 1 / 12
"""Of the training images: 5,000 of 60,000, MNIST's own customary split."""


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


def train(data: ImageData, family: Family, chosen: Settings, progress: Progress | None = None) -> Trained:
    """Builds and fits a model. Two runs on one machine with the same settings give the same weights, bit for bit.

    Turns on TensorFlow's deterministic operations for the rest of the process, and seeds Python, numpy and TensorFlow.
    Raises ModelError where the loss is not finite: the learning rate was too high.
    """
    keras.utils.set_random_seed(chosen.seed)
    tf.config.experimental.enable_op_determinism()
    (scaling,) = family.preprocessing.values()
    order = np.random.default_rng(chosen.seed).permutation(len(data.train_images))
    held_out = max(1, round(len(order) * VALIDATION_PART))
    validation, fitted = order[:held_out], order[held_out:]
    if not len(fitted):
        raise ModelError(
            f"{len(order)} training images came, where at least 2 were expected: one is held out for validation"
        )
    model = family.build(len(data.labels))
    steps = chosen.epochs * math.ceil(len(fitted) / chosen.batch_size)
    model.compile(
        optimizer=_optimizer(chosen, steps),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    started = time.perf_counter()
    history = model.fit(
        scaling.apply(data.train_images[fitted]),
        data.train_labels[fitted],
        batch_size=chosen.batch_size,
        epochs=chosen.epochs,
        validation_data=(scaling.apply(data.train_images[validation]), data.train_labels[validation]),
        shuffle=True,
        verbose=0,
        callbacks=[_Report(progress or Silent()), keras.callbacks.TerminateOnNaN()],
    )
    seconds = time.perf_counter() - started
    figures = {name: [float(value) for value in values] for name, values in history.history.items()}
    if not all(math.isfinite(loss) for loss in figures["loss"]):
        raise ModelError(f"the loss is not finite with the learning rate {chosen.learning_rate}: choose a lower one")
    return Trained(model, figures, seconds)


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
