"""The gate between a model and its smaller successor: both answer the same test examples, and noise must not decide.

What counts are the examples on which one of the two is right and the other wrong: nothing else tells them apart. With
`lost` and `gained` of them among n the drop is (lost - gained) / n. Its 95 % interval is the score interval for a
difference of paired proportions (Tango 1998, "Equivalence test and confidence interval for the difference in
proportions for the paired-sample design", Statistics in Medicine 17). It excludes 0 exactly where McNemar's test finds
a difference, and does not shrink to nothing where no answer changed.

A model passes where the drop itself, the best guess, is within the budget, **and** where its interval ends at most
`MARGIN` above the budget, so that a larger drop is ruled out (a test of non-inferiority, one-sided at 2.5 %). The first
alone would let chance pass a model on few examples. The interval against the bare budget would refuse nearly all: on
10,000 examples of which 1 % change sides it reaches 0.2 points beyond the drop, twice the usual budget.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferd_training.errors import ModelError

MARGIN = 0.3
"""Points of accuracy by which the interval may end above the budget: what 10,000 examples resolve where 2.3 % of the
answers change sides. Where none changes, 957 of them resolve a budget of 0.1 points with it; fewer resolve larger ones.
"""

_Z = 1.959963984540054
"""The normal distribution's quantile at 97.5 %: two-sided 95 %."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same test examples, so many. Accuracies and `agreement` are shares in 0..1.

    `drop` is the accuracy lost, in points (0.1 is one example in a thousand), `low` and `high` its 95 % interval; a
    gain is negative. `lost` counts the examples on which only the first model is right, `gained` those on which only
    the second is. `agreement` is the share of examples that both give the same class, right or wrong. `worst_label` is
    the class whose recall changed for the worst, by `worst_change` points: negative where it fell.
    """

    examples: int
    accuracy_before: float
    accuracy_after: float
    drop: float
    low: float
    high: float
    lost: int
    gained: int
    agreement: float
    worst_label: str
    worst_change: float

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON document."""
        return asdict(self)


def compare(
    before: NDArray[np.integer[Any]],
    after: NDArray[np.integer[Any]],
    truth: NDArray[np.integer[Any]],
    labels: tuple[str, ...] | list[str],
) -> Comparison:
    """Compares the classes that two models give the same examples, all [count] of indices into `labels`.

    Raises ModelError where the arrays do not belong together, are empty, or hold an index that is no label's.
    """
    arrays = {"the first model's answers": before, "the second model's answers": after, "the true classes": truth}
    for name, array in arrays.items():
        if array.shape != (truth.size,) or not array.size or array.dtype.kind not in "iu":
            raise ModelError(
                f"{name} are {array.dtype} {list(array.shape)}, where whole numbers [{truth.size or 'count'}] were "
                "expected: compare two models on the same examples, at least one"
            )
        if array.min() < 0 or array.max() >= len(labels):
            raise ModelError(
                f"{name} hold classes from {array.min()} to {array.max()}, where 0 to {len(labels) - 1} were expected: "
                "the models were trained for other data"
            )
    right_before, right_after = before == truth, after == truth
    lost = int((right_before & ~right_after).sum())
    gained = int((right_after & ~right_before).sum())
    low, high = interval(lost, gained, len(truth))
    change = right_after.astype(np.int64) - right_before
    recalls = {int(index): 100.0 * float(change[truth == index].mean()) for index in np.unique(truth)}
    worst = min(recalls, key=lambda index: recalls[index])
    return Comparison(
        examples=len(truth),
        accuracy_before=float(right_before.mean()),
        accuracy_after=float(right_after.mean()),
        # One division of whole numbers, so that 10 examples of 10,000 are 0.1 points and nothing above it.
        drop=100 * (lost - gained) / len(truth),
        low=low,
        high=high,
        lost=lost,
        gained=gained,
        agreement=float((before == after).mean()),
        worst_label=labels[worst],
        worst_change=recalls[worst],
    )


def passes(comparison: Comparison, max_drop_points: float) -> str:
    """Why the second model is refused where `max_drop_points` points of accuracy may be lost; empty where it passes.

    Raises ModelError for a budget that is not a finite number from 0.
    """
    check_budget(max_drop_points)
    figures = (
        f"{100 * comparison.accuracy_before:.2f} % to {100 * comparison.accuracy_after:.2f} % on "
        f"{comparison.examples} test examples"
    )
    if comparison.drop > max_drop_points:
        return (
            f"the accuracy falls by {comparison.drop:.4g} points ({figures}), where at most {max_drop_points:g} were "
            "allowed: ask for less, or allow more"
        )
    if comparison.high > max_drop_points + MARGIN:
        return (
            f"a drop of the accuracy by {comparison.high:.4g} points is not ruled out ({figures}, "
            f"{comparison.lost + comparison.gained} of them right before or after only), where at most "
            f"{max_drop_points:g} were allowed and {MARGIN:g} are left to chance: give more test examples, ask for "
            "less, or allow more"
        )
    return ""


def check_budget(max_drop_points: float) -> None:
    """Raises ModelError for a budget that is not a finite number from 0, before any work is done."""
    if not (math.isfinite(max_drop_points) and max_drop_points >= 0):
        raise ModelError(
            f"an accuracy drop of {max_drop_points} points was allowed, where a finite number from 0 was expected"
        )


def interval(lost: int, gained: int, examples: int) -> tuple[float, float]:
    """The 95 % score interval of (lost - gained) / examples, in points (Tango 1998)."""
    observed = (lost - gained) / examples
    return (
        100 * _end(lost, gained, examples, inside=observed, outside=-1.0),
        100 * _end(lost, gained, examples, inside=observed, outside=1.0),
    )


def _end(lost: int, gained: int, examples: int, *, inside: float, outside: float) -> float:
    """Where the score statistic reaches the quantile, between a difference within the interval and one outside it."""
    # The statistic falls as the difference grows, so that halving finds the place; 60 halvings exhaust a double.
    for _ in range(60):
        middle = (inside + outside) / 2
        if abs(_score(lost, gained, examples, middle)) < _Z:
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2


def _score(lost: int, gained: int, examples: int, difference: float) -> float:
    """Tango's statistic: how many standard deviations the counts are from a true `difference`, in -1..1."""
    deviation = lost - gained - examples * difference
    # The most likely share of `gained` where the shares differ by `difference`: a root of a quadratic equation.
    a = 2.0 * examples
    b = (2 * examples - lost + gained) * difference - lost - gained
    c = -gained * difference * (1 - difference)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = examples * (2 * share + difference * (1 - difference))
    if variance <= 0:
        return math.copysign(math.inf, deviation) if deviation else 0.0
    return deviation / math.sqrt(variance)
