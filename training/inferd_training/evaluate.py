"""Evaluation of a classifier's probabilities against the true labels. Arrays only: any runtime may compute them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferd_training.errors import ModelError

_EPSILON = 1e-7
"""Keras clips probabilities to [1e-7, 1 - 1e-7] before the logarithm (keras.config.epsilon); so the losses agree."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """One class, of `support` examples: precision and recall in 0..1, None where never predicted or without example."""

    label: str
    precision: float | None
    recall: float | None
    support: int


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """`confusion` is int64 [classes, classes]: true classes by predicted ones. `loss` is the mean, in nats."""

    accuracy: float
    loss: float
    examples: int
    confusion: NDArray[np.int64]
    classes: tuple[ClassFigures, ...]

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON document."""
        return {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "examples": self.examples,
            "classes": [
                {"label": c.label, "precision": c.precision, "recall": c.recall, "support": c.support}
                for c in self.classes
            ],
            "confusion": self.confusion.tolist(),
        }


def evaluate(
    probabilities: NDArray[np.floating[Any]], truth: NDArray[np.integer[Any]], labels: tuple[str, ...]
) -> Evaluation:
    """Compares `probabilities`, [count, classes] and summing to 1, to `truth`, [count], indices into `labels`.

    Raises ModelError where the shapes do not fit each other or a probability is not finite.
    """
    if probabilities.shape != (len(truth), len(labels)) or not len(truth):
        raise ModelError(
            f"the model gives {list(probabilities.shape)} probabilities, where [{len(truth)}, {len(labels)}] were "
            "expected: it was trained for other data"
        )
    if not np.isfinite(probabilities).all():
        raise ModelError("the model gives probabilities that are not finite: train it again")
    count = len(labels)
    predicted = probabilities.argmax(axis=1)
    confusion = np.bincount(truth.astype(np.int64) * count + predicted, minlength=count * count).reshape(count, count)
    chosen = probabilities[np.arange(len(truth)), truth].astype(np.float64)
    correct = confusion.diagonal()
    return Evaluation(
        accuracy=float(correct.sum() / len(truth)),
        loss=float(-np.log(np.clip(chosen, _EPSILON, 1 - _EPSILON)).mean()),
        examples=len(truth),
        confusion=confusion,
        classes=tuple(
            ClassFigures(
                label=label,
                precision=_ratio(correct[i], confusion[:, i].sum()),
                recall=_ratio(correct[i], confusion[i].sum()),
                support=int(confusion[i].sum()),
            )
            for i, label in enumerate(labels)
        ),
    )


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


def table(evaluation: Evaluation) -> str:
    """The figures as lines of text, one a class."""
    width = max(len(c.label) for c in evaluation.classes)
    lines = [f"{'class':<{width}}  precision  recall  examples"]
    lines.extend(
        f"{c.label:<{width}}  {_figure(c.precision):>9}  {_figure(c.recall):>6}  {c.support:>8}"
        for c in evaluation.classes
    )
    lines.append(f"accuracy {evaluation.accuracy:.4f}, loss {evaluation.loss:.4f}, {evaluation.examples} examples")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
