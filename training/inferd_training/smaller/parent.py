"""The run that is made smaller: its model, and the examples that it was fitted to, validated on and tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inferd_training import models, runs, stages
from inferd_training.data.dataset import Part
from inferd_training.errors import ModelError
from inferd_training.files import sha256

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True, eq=False)
class Parent:
    """`seed` is the one that held the validation examples out: none of the model's descendants may have seen them."""

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
        raise ModelError(f"{folder} does not say by which seed its examples were held out: train it again") from error
    data = stages.data_of(run, data_folder, tell)
    model = models.load(run.model)
    described = models.signature(model)
    if len(described.inputs) != 1 or len(described.outputs) != 1:
        raise ModelError(
            f"the model of {folder} has {len(described.inputs)} inputs and {len(described.outputs)} outputs, where one "
            "of each was expected"
        )
    fitted, validation = data.split(seed)
    return Parent(
        run=run,
        model=model,
        sha256=sha256(run.model),
        seed=seed,
        fitted=fitted,
        validation=validation,
        test=data.test,
    )
