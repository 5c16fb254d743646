"""The run that is made smaller: its model, and the images that it was fitted to, validated on and tested on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inferd_training import fit, models, runs, stages
from inferd_training.errors import ModelError
from inferd_training.families.family import Scaling
from inferd_training.files import sha256

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Raw inputs as clients send them, axis 0 the row, and the true classes: whole numbers [rows]."""

    inputs: NDArray[Any]
    truth: NDArray[np.integer[Any]]

    def examples(self, preprocessing: Mapping[str, Scaling]) -> fit.Examples:
        """The same as a model with that preprocessing of its one input takes them."""
        scaling = next(iter(preprocessing.values()), None)
        return (self.inputs if scaling is None else scaling.apply(self.inputs), self.truth)


@dataclass(frozen=True, slots=True, eq=False)
class Parent:
    """`seed` is the one that held the validation images out: none of the model's descendants may have seen them."""

    run: runs.Run
    model: keras.Model
    sha256: str
    seed: int
    fitted: Part
    validation: Part
    test: Part

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        (labels,) = self.run.labels.values()
        return tuple(labels)

    @property
    def family(self) -> str:
        """The name of the model's family."""
        return str(self.run.training["family"])


def load(folder: Path, *, data_folder: Path | None = None, tell: stages.Tell) -> Parent:
    """Loads a run and its data. Raises ModelError where it is none, or DataError where its data cannot be had."""
    run = runs.load(folder)
    try:
        seed = int(run.training.get("split_seed", run.training["settings"]["seed"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder} does not say by which seed its images were held out: train it again") from error
    data = stages.data_of(run, data_folder, tell)
    model = models.load(run.model)
    described = models.signature(model)
    if len(described.inputs) != 1 or len(described.outputs) != 1:
        raise ModelError(
            f"the model of {folder} has {len(described.inputs)} inputs and {len(described.outputs)} outputs, where one "
            "of each was expected"
        )
    fitted, validation = fit.split(len(data.train_images), seed)
    return Parent(
        run=run,
        model=model,
        sha256=sha256(run.model),
        seed=seed,
        fitted=Part(data.train_images[fitted], data.train_labels[fitted]),
        validation=Part(data.train_images[validation], data.train_labels[validation]),
        test=Part(data.test_images, data.test_labels),
    )
