"""The three methods from run folder to run folder, as the commands run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferd_training import fit
from inferd_training.errors import ModelError
from inferd_training.families.family import Family, Scaling
from inferd_training.families.registry import FAMILIES
from inferd_training.gate import compare
from inferd_training.progress import Bars
from inferd_training.smaller import parent as parents
from inferd_training.smaller.distill import Distillation, alone, distil, student_of, taught
from inferd_training.smaller.finetune import CALIBRATION_ROWS, finetune, quantised
from inferd_training.smaller.parent import Parent
from inferd_training.smaller.prune import Pruning, prune
from inferd_training.smaller.successor import Successor, Target, conclude, figures, probabilities
from inferd_training.smaller.widths import MULTIPLE
from inferd_training.stages import Tell

if TYPE_CHECKING:
    import keras

DISTIL_EPOCHS = 3
"""Times the family's. Measured on Fashion-MNIST, a student of half the reference CNN's width: after as many epochs as
the CNN itself had, it is no better than without its teacher."""

DISTIL_RATE = 2.0
"""Of the family's learning rate. The teacher keeps the student from fitting its examples too closely, so that it can
learn faster: in the same measurement a validation accuracy of 0.915 against 0.911 at the family's own rate."""

FINETUNE_EPOCHS = 2
FINETUNE_RATE = 0.1
"""Of the family's learning rate: the weights shall move by roundings, not learn anew."""


@dataclass(frozen=True, slots=True)
class Request:
    """What every method must know: the run and where its data are, where the new run goes, and how to train.

    None stands for what the family declares, or the method.
    """

    run: Path
    target: Target
    data_folder: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str = "adam"
    learning_rate: float | None = None
    seed: int = 0

    def parent(self, tell: Tell) -> Parent:
        """Loads the run, after what costs nothing to check. Raises ModelError or DataError."""
        self.target.check(self.run)
        return parents.load(self.run, data_folder=self.data_folder, tell=tell)

    def settings(self, family: Family, epochs: int | None = None, rate: float = 1.0) -> fit.Settings:
        """The hyper-parameters: what was asked for, else `epochs`, and `rate` of the family's learning rate."""
        chosen = fit.settings(
            family,
            epochs=epochs if self.epochs is None else self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
        if self.learning_rate is not None:
            return chosen
        return replace(chosen, learning_rate=chosen.learning_rate * rate)


def family_of(name: str) -> Family:
    """A family by its name. Raises ModelError where there is none."""
    if name not in FAMILIES:
        raise ModelError(f"'{name}' is not a model family: choose from {', '.join(FAMILIES)}")
    return FAMILIES[name]


def prune_run(request: Request, pruning: Pruning, distillation: Distillation, *, tell: Tell) -> dict[str, Any]:
    """Prunes a run's model and writes the new run; gives its report.

    While it is trained on, its parent's answers count as `distillation` says; without a weight they are not asked for.
    Raises ModelError, DataError, or AccuracyError where the gate refuses the model.
    """
    distillation.check()
    parent = request.parent(tell)
    chosen = request.settings(family_of(parent.family))
    preprocessing = parent.run.preprocessing
    parts = (parent.fitted, parent.validation)
    fitted, validation = (fit.examples(part, preprocessing) for part in parts)
    pruning.check(chosen.epochs)
    answers = None
    if distillation.alpha:
        tell("asking the parent")
        answers = [probabilities(parent.model, preprocessing, part) for part in parts]

    def train(model: keras.Model, current: fit.Settings) -> fit.Trained:
        if answers is None:
            return fit.fit(model, fitted, validation, current, Bars(tell))
        known = (answers[0], answers[1])
        return taught(model, fitted, validation, known, current, distillation, progress=Bars(tell))

    made = prune(parent.model, fitted, chosen, pruning, train, tell=tell)
    details = {
        "layers": {name: {"before": before, "after": after} for name, (before, after) in made.widths.items()},
        "left": dict(made.left),
    }
    settings = {**asdict(pruning), **(asdict(distillation) if answers else {})}
    successor = Successor("prune", made.trained, parent.family, preprocessing, chosen, settings, details)
    return conclude(parent, successor, request.target, request.data_folder, tell)


def finetune_run(request: Request, *, tell: Tell) -> dict[str, Any]:
    """Fine-tunes a run's model for INT8 and writes the new run; gives its report.

    Besides the plain models' figures the report has the accuracies of both with rounding to 8 bits, the ranges of the
    activations taken from the same examples. Raises as `prune_run` does.
    """
    parent = request.parent(tell)
    chosen = request.settings(family_of(parent.family), FINETUNE_EPOCHS, FINETUNE_RATE)
    preprocessing = parent.run.preprocessing
    fitted = fit.examples(parent.fitted, preprocessing)
    made = finetune(parent.model, fitted, fit.examples(parent.validation, preprocessing), chosen, progress=Bars(tell))
    tell("rounding both models to 8 bits")
    rounded = [
        figures(quantised(model, fitted[0][:CALIBRATION_ROWS]), preprocessing, parent)
        for model in (parent.model, made.trained.model)
    ]
    details = {
        "rounded": {
            "before": {"test_accuracy": rounded[0].test_accuracy},
            "after": {"test_accuracy": rounded[1].test_accuracy},
            "comparison": compare(
                rounded[0].predicted, rounded[1].predicted, parent.test.truth, parent.labels
            ).as_json(),
        },
        "quantised": list(made.quantised),
        "left": dict(made.left),
    }
    settings = {"bits": 8, "calibration_rows": min(CALIBRATION_ROWS, len(fitted[0]))}
    successor = Successor("finetune", made.trained, parent.family, preprocessing, chosen, settings, details)
    return conclude(parent, successor, request.target, request.data_folder, tell)


@dataclass(frozen=True, slots=True)
class Student:
    """Who learns: a model of the family of that name, else one like the teacher at `width` of its channels.

    They are rounded to a whole `multiple` in each layer.
    """

    family: str | None = None
    width: float = 0.5
    multiple: int = MULTIPLE

    def build(self, parent: Parent) -> keras.Model:
        """The student with fresh weights. Raises ModelError."""
        if self.family is not None:
            return family_of(self.family).build(len(parent.labels))
        return student_of(parent.model, self.width, self.multiple)

    def preprocessing(self, parent: Parent) -> Mapping[str, Scaling]:
        """What raw inputs undergo before it."""
        return parent.run.preprocessing if self.family is None else family_of(self.family).preprocessing

    def as_json(self) -> dict[str, Any]:
        """What the report says of it."""
        if self.family is not None:
            return {"student": self.family}
        return {"width": self.width, "multiple": self.multiple}


def distil_run(
    request: Request, student: Student, distillation: Distillation, *, baseline: bool = True, tell: Tell
) -> dict[str, Any]:
    """Trains a student of a run's model and writes the new run; gives its report.

    With `baseline` the same student is trained without its teacher as well, and the report compares the two: whatever
    the teacher is worth stands there, and nowhere else. Raises as `prune_run` does.
    """
    distillation.check()
    if student.family is not None:
        family_of(student.family)
    parent = request.parent(tell)
    family = family_of(student.family or parent.family)
    taught = family_of(parent.family).kind
    if family.kind != taught:
        raise ModelError(
            f"the family '{family.name}' takes {family.kind.name}, and its teacher {taught.name}: choose another one"
        )
    chosen = request.settings(family, DISTIL_EPOCHS * family.epochs, DISTIL_RATE)
    preprocessing = student.preprocessing(parent)
    parts = (parent.fitted, parent.validation)
    fitted, validation = (fit.examples(part, preprocessing) for part in parts)
    tell("asking the teacher")
    answers, held_out = (probabilities(parent.model, parent.run.preprocessing, part) for part in parts)
    tell("training the student with its teacher")
    trained = distil(
        lambda: student.build(parent),
        fitted,
        validation,
        (answers, held_out),
        chosen,
        distillation,
        progress=Bars(tell),
    )
    details: dict[str, Any] = {}
    if baseline:
        tell("training the same student without its teacher")
        without = alone(lambda: student.build(parent), fitted, validation, chosen, progress=Bars(tell))
        found = [figures(model, preprocessing, parent) for model in (without.model, trained.model)]
        details["baseline"] = {
            **found[0].as_json(),
            "comparison": compare(found[0].predicted, found[1].predicted, parent.test.truth, parent.labels).as_json(),
        }
    settings = {**asdict(distillation), **student.as_json()}
    successor = Successor("distill", trained, family.name, preprocessing, chosen, settings, details)
    return conclude(parent, successor, request.target, request.data_folder, tell)
