"""Distillation: a smaller model, the student, learns the examples' classes, and what a trained one says of them.

The teacher's probabilities say more than the class: which others it might have been. A temperature softens them first,
so that the small ones count (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from inferd_training import fit
from inferd_training.errors import ModelError
from inferd_training.fit import Examples
from inferd_training.progress import Progress
from inferd_training.smaller import channels
from inferd_training.smaller.graph import uncompiled
from inferd_training.smaller.widths import MULTIPLE, check_multiple, remaining

Answers = tuple[NDArray[np.float32], NDArray[np.float32]]
"""A teacher's probabilities, [count, classes], for the fitted and for the validation examples."""

_SMALLEST = 1e-7
"""Probabilities are cut off here before the logarithm, as Keras does (keras.config.epsilon)."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """How to distil. `alpha` in 0..1 is the weight of the teacher's answers, the rest that of the true classes."""

    temperature: float
    alpha: float

    def check(self) -> None:
        """Raises ModelError for what cannot be done."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ModelError(f"the temperature {self.temperature} was asked for: it must be positive and finite")
        # Also refuses NaN.
        if not 0 <= self.alpha <= 1:
            raise ModelError(f"the weight {self.alpha} of the teacher was asked for: it must lie between 0 and 1")


def student_of(model: keras.Model, width: float, multiple: int = MULTIPLE) -> keras.Model:
    """A model like `model` with fresh weights, whose layers have that share of their channels where they can.

    They have a whole `multiple` of them. Raises ModelError for a width outside 0..1, or where no layer can be narrower.
    """
    if not 0 < width < 1:
        raise ModelError(f"the width {width} was asked for: it must lie between 0 and 1, such as 0.5")
    check_multiple(multiple)
    found = channels.find(model)
    widths = {entry.layer: remaining(entry.width, 1 - width, multiple) for entry in found.prunable}
    if all(widths[entry.layer] == entry.width for entry in found.prunable):
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in found.left.items())
        raise ModelError(
            f"no layer of the model can be {width} times as wide in multiples of {multiple} ({reasons}): ask for less, "
            "or give a family by --student"
        )
    return channels.resized(model, widths)


def distil(
    build: Callable[[], keras.Model],
    fitted: Examples,
    validation: Examples,
    teacher: Answers,
    chosen: fit.Settings,
    distillation: Distillation,
    *,
    progress: Progress | None = None,
) -> fit.Trained:
    """Builds a student and trains it as `taught` does; its weights, and the order of its examples, are the seed's."""
    fit.seed_all(chosen.seed)
    return taught(build(), fitted, validation, teacher, chosen, distillation, progress=progress)


def taught(
    model: keras.Model,
    fitted: Examples,
    validation: Examples,
    teacher: Answers,
    chosen: fit.Settings,
    distillation: Distillation,
    *,
    progress: Progress | None = None,
) -> fit.Trained:
    """Trains a model on the true classes of the examples and on its teacher's answers.

    Raises ModelError where the two have another number of classes, or the loss is not finite.
    """
    classes = model.outputs[0].shape[-1]
    if classes != teacher[0].shape[-1]:
        raise ModelError(
            f"the student tells {classes} classes apart and its teacher {teacher[0].shape[-1]}, where as many were "
            "expected: choose another student"
        )
    trained = fit.fit(
        model,
        (fitted[0], _targets(fitted[1], teacher[0])),
        (validation[0], _targets(validation[1], teacher[1])),
        chosen,
        progress,
        loss=distillation_loss(distillation),
        accuracy=keras.metrics.MeanMetricWrapper(_hits, name="accuracy"),
    )
    # A model is saved with its loss, and whoever loads it would need ours.
    return replace(trained, model=uncompiled(model))


def alone(
    build: Callable[[], keras.Model],
    fitted: Examples,
    validation: Examples,
    chosen: fit.Settings,
    *,
    progress: Progress | None = None,
) -> fit.Trained:
    """The same student without its teacher: it starts from the same weights and sees the examples in the same order."""
    fit.seed_all(chosen.seed)
    return fit.fit(build(), fitted, validation, chosen, progress)


def distillation_loss(distillation: Distillation) -> Callable[[Any, Any], Any]:
    """The loss of targets [rows, 1 + classes], the true class and the teacher's probabilities, against probabilities.

    alpha T^2 KL(teacher || student), both softened by T, plus (1 - alpha) times the cross-entropy with the true class.
    T^2 keeps the two gradients as large as each other whatever the temperature (Hinton et al. 2015, section 2).
    """
    temperature, alpha = distillation.temperature, distillation.alpha

    def softened(probabilities: Any) -> Any:
        # The logarithm of a softmax is its logits but for a constant, which the softmax takes away again.
        return ops.log_softmax(ops.log(ops.clip(probabilities, _SMALLEST, 1.0)) / temperature, axis=-1)

    def loss(targets: Any, probabilities: Any) -> Any:
        teacher, student = softened(targets[:, 1:]), softened(probabilities)
        divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
        truth = ops.cast(targets[:, 0], "int32")
        hard = keras.losses.sparse_categorical_crossentropy(truth, probabilities)
        return alpha * temperature**2 * divergence + (1 - alpha) * hard

    return loss


def _hits(targets: Any, probabilities: Any) -> Any:
    return ops.cast(ops.cast(targets[:, 0], "int32") == ops.argmax(probabilities, axis=-1), "float32")


def _targets(truth: NDArray[Any], answers: NDArray[np.float32]) -> NDArray[np.float32]:
    # Whole numbers below 2^24 are exact in float32.
    return np.concatenate([truth[:, np.newaxis].astype(np.float32), answers], axis=1)
