"""Structured pruning: whole channels go, a few at a time, and what is left is trained on.

What comes out is an ordinary model that is smaller: no masks, no sparse kernels, nothing that a runtime must know of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import keras
import numpy as np
from numpy.typing import NDArray

from inferd_training import fit
from inferd_training.errors import ModelError
from inferd_training.fit import Examples
from inferd_training.smaller import channels as channels_of
from inferd_training.smaller.importance import MEASURES, TAYLOR, by_norm, by_taylor
from inferd_training.smaller.widths import MULTIPLE, check_multiple, remaining

STEPS = 3


@dataclass(frozen=True, slots=True)
class Pruning:
    """How to prune: the share of channels that go, in 0..1 without the ends, in how many steps, by which measure.

    What is left of a layer is a whole `multiple` of channels.
    """

    sparsity: float
    steps: int = STEPS
    importance: str = TAYLOR
    multiple: int = MULTIPLE

    def check(self, epochs: int) -> None:
        """Raises ModelError for what cannot be done in so many epochs."""
        # Also refuses NaN.
        if not 0 < self.sparsity < 1:
            raise ModelError(f"the sparsity {self.sparsity} was asked for: it must lie between 0 and 1, such as 0.5")
        if not 1 <= self.steps <= epochs:
            raise ModelError(
                f"{self.steps} steps in {epochs} epochs were asked for: at least 1 is needed, and an epoch for each"
            )
        if self.importance not in MEASURES:
            raise ModelError(f"'{self.importance}' is no measure of importance: choose from {', '.join(MEASURES)}")
        check_multiple(self.multiple)


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """The smaller model, trained; the widths before and after by layer; why other layers were left as they are."""

    trained: fit.Trained
    widths: Mapping[str, tuple[int, int]]
    left: Mapping[str, str]


Train = Callable[[keras.Model, fit.Settings], fit.Trained]
"""Trains a model on by some settings."""


def prune(
    model: keras.Model,
    fitted: Examples,
    chosen: fit.Settings,
    pruning: Pruning,
    train: Train,
    *,
    tell: Callable[[str], None] = lambda _line: None,
) -> Pruned:
    """Prunes a classifier and trains it on, an epoch after each step and the rest of the epochs after the last.

    `fitted` is what `train` fits it to; some of it tells which channels matter.

    Raises ModelError where no layer can be pruned, or the share is too small to take a channel.
    """
    pruning.check(chosen.epochs)
    fit.seed_all(chosen.seed)
    found = channels_of.find(model)
    if not found.prunable:
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in found.left.items()) or "it has no layers"
        raise ModelError(f"no layer of the model can be pruned ({reasons}): distil it instead")
    before = {entry.layer: entry.width for entry in found.prunable}
    after = _left_of(before, pruning.sparsity, pruning)
    if after == before:
        raise ModelError(
            f"the sparsity {pruning.sparsity} takes no channel of layers with {', '.join(map(str, before.values()))}: "
            f"ask for more, or for other multiples than of {pruning.multiple}"
        )
    steps: list[fit.Trained] = []
    for number, share in enumerate(shares(pruning.sparsity, pruning.steps), start=1):
        model = smaller(model, _left_of(before, share, pruning), pruning, chosen, fitted)
        tell(f"step {number} of {pruning.steps}: {share:.0%} of the channels gone, {model.count_params()} parameters")
        epochs = 1 if number < pruning.steps else chosen.epochs - pruning.steps + 1
        steps.append(train(model, replace(chosen, epochs=epochs)))
        model = steps[-1].model
    history = {name: [value for step in steps for value in step.history[name]] for name in steps[0].history}
    trained = fit.Trained(model, history, sum(step.seconds for step in steps))
    return Pruned(trained, {name: (before[name], after[name]) for name in before}, found.left)


def _left_of(widths: Mapping[str, int], share: float, pruning: Pruning) -> dict[str, int]:
    return {name: remaining(width, share, pruning.multiple) for name, width in widths.items()}


def smaller(
    model: keras.Model, widths: Mapping[str, int], pruning: Pruning, chosen: fit.Settings, fitted: Examples
) -> keras.Model:
    """The model with the most important channels only, so many of each layer; not trained."""
    found = channels_of.find(model)
    names = [entry.layer for entry in found.prunable]
    if pruning.importance == TAYLOR:
        importance = by_taylor(model, names, fitted, chosen.batch_size)
    else:
        importance = by_norm(model, names)
    return channels_of.pruned(
        model,
        found,
        {
            entry.layer: most_of_each(importance[entry.layer], entry.groups, widths[entry.layer])
            for entry in found.prunable
        },
    )


def most(importance: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The `count` channels that matter most, in ascending order of their indices; of equals, the first."""
    return np.sort(np.argsort(-importance, kind="stable")[:count])


def most_of_each(importance: NDArray[np.float64], groups: int, count: int) -> NDArray[np.intp]:
    """The `count` channels that matter most of each of so many groups of equal size, in ascending order."""
    size = len(importance) // groups
    return np.concatenate(
        [start + most(importance[start : start + size], count) for start in range(0, len(importance), size)]
    )


def shares(sparsity: float, steps: int) -> list[float]:
    """The share of the channels that is gone after each step: most go early, when most can be spared.

    The cubic schedule of Zhu and Gupta 2017, "To prune, or not to prune".
    """
    return [sparsity * (1 - (1 - step / steps) ** 3) for step in range(1, steps + 1)]
