"""What comes of making a run smaller: measured beside its parent, held against the gate, written as a run itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inferd_training import fit, models, plots, runs
from inferd_training.data.dataset import Part
from inferd_training.errors import AccuracyError, ModelError
from inferd_training.evaluate import evaluate
from inferd_training.export.metadata import versions
from inferd_training.families.family import Scaling
from inferd_training.files import hidden_folder, holds_only, replace_folder, sha256, write_json
from inferd_training.gate import Comparison, check_budget, compare, passes
from inferd_training.smaller.cost import Cost, cost
from inferd_training.smaller.parent import Parent
from inferd_training.stages import Tell

if TYPE_CHECKING:
    import keras

REPORT_FORMAT = 1
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Target:
    """Where the new run goes, and how many points of accuracy it may lose. `keep`: it is written whatever it loses."""

    output: Path
    max_accuracy_drop: float
    keep: bool

    def check(self, parent: Path) -> None:
        """Raises ModelError for a folder that must not be replaced, or a budget that is none; before any training."""
        check_budget(self.max_accuracy_drop)
        if self.output.resolve() == parent.resolve():
            raise ModelError(f"{self.output} is the run that is made smaller: give another folder")
        if self.output.exists() and not (self.output.is_dir() and holds_only(self.output, runs.FILES)):
            raise ModelError(f"{self.output} holds other files than an earlier training's: give an empty or new folder")


@dataclass(frozen=True, slots=True, eq=False)
class Successor:
    """A smaller model, how it was made, and what its report says besides the figures. `settings` are the method's."""

    method: str
    trained: fit.Trained
    family: str
    preprocessing: Mapping[str, Scaling]
    chosen: fit.Settings
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """What a model costs and how well it answers: shares in 0..1, and the classes that it gives the test examples."""

    cost: Cost
    validation_accuracy: float
    test_accuracy: float
    predicted: NDArray[np.int64]

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON document, without the answers."""
        return {
            **asdict(self.cost),
            "validation_accuracy": self.validation_accuracy,
            "test_accuracy": self.test_accuracy,
        }


def probabilities(model: keras.Model, preprocessing: Mapping[str, Scaling], part: Part) -> NDArray[np.float32]:
    """A model's answers to raw inputs, [rows, classes]."""
    (given,) = models.signature(model).inputs
    (answers,) = models.predict(model, {given.name: part.inputs}, _BATCH, preprocessing).values()
    return answers


def figures(model: keras.Model, preprocessing: Mapping[str, Scaling], parent: Parent) -> Figures:
    """Measures a model on the parent's validation and test examples. Raises ModelError for answers that are none."""
    validation, test = (probabilities(model, preprocessing, part) for part in (parent.validation, parent.test))
    return Figures(
        cost=cost(model),
        validation_accuracy=evaluate(validation, parent.validation.truth, parent.labels).accuracy,
        test_accuracy=evaluate(test, parent.test.truth, parent.labels).accuracy,
        predicted=test.argmax(axis=1),
    )


def conclude(parent: Parent, made: Successor, target: Target, data_folder: Path | None, tell: Tell) -> dict[str, Any]:
    """Compares, decides and writes the run folder, whole or not at all; gives the report.

    Raises AccuracyError where the gate refuses the model and it is not to be kept.
    """
    tell("comparing both models on the test examples")
    before = figures(parent.model, parent.run.preprocessing, parent)
    after = figures(made.trained.model, made.preprocessing, parent)
    comparison = compare(before.predicted, after.predicted, parent.test.truth, parent.labels)
    reason = passes(comparison, target.max_accuracy_drop)
    if reason and not target.keep:
        raise AccuracyError(f"{reason}; nothing was written, which --keep would do all the same")
    training = _training(parent, made, after.validation_accuracy)
    report = {
        "format": REPORT_FORMAT,
        "method": made.method,
        "settings": training["settings"],
        "lineage": training["lineage"],
        "before": before.as_json(),
        "after": after.as_json(),
        "comparison": comparison.as_json(),
        "gate": {"max_accuracy_drop": target.max_accuracy_drop, "passed": not reason, "reason": reason},
        **made.details,
        "versions": training["versions"],
    }
    _write(parent, made, target.output, training, report, data_folder)
    return report


def _training(parent: Parent, made: Successor, validation_accuracy: float) -> dict[str, Any]:
    """What the new run, and the ONNX file made of it, say of how it came to be; the oldest ancestor is first."""
    before = parent.run.training
    ancestor = {
        "method": before.get("method", "train"),
        "model_sha256": parent.sha256,
        "settings": before["settings"],
        "versions": before.get("versions", {}),
    }
    return {
        "family": made.family,
        "method": made.method,
        "settings": {**asdict(made.chosen), **made.settings},
        "split_seed": parent.seed,
        "seconds": round(made.trained.seconds, 1),
        "versions": versions(),
        "validation_accuracy": validation_accuracy,
        "lineage": [*before.get("lineage", []), ancestor],
    }


def _write(
    parent: Parent,
    made: Successor,
    output: Path,
    training: Mapping[str, Any],
    report: Mapping[str, Any],
    data_folder: Path | None,
) -> None:
    # What the parent's document says of the data is as true of this run, in whatever form it is.
    document = json.loads((parent.run.folder / runs.RUN).read_text(encoding="utf-8"))
    described = models.signature(made.trained.model)
    (taken,), (labelled,) = described.inputs, described.outputs
    with hidden_folder(output.parent) as scratch:
        new = scratch / "run"
        new.mkdir()
        made.trained.model.save(new / runs.MODEL)
        write_json(new / runs.HISTORY, made.trained.history)
        plots.learning_curves(made.trained.history, new / runs.CURVES)
        document |= {
            "model_sha256": sha256(new / runs.MODEL),
            "labels": {labelled.name: list(parent.labels)},
            # By the name of the only input, which a student of another family may call otherwise.
            "tokeniser": dict(zip((taken.name,), parent.run.tokeniser.values(), strict=False)),
            "training": training,
        }
        if made.preprocessing is not parent.run.preprocessing:
            document["preprocessing"] = {name: asdict(scaling) for name, scaling in made.preprocessing.items()}
        if data_folder is not None:
            document["data_folder"] = str(data_folder.resolve())
        write_json(new / runs.RUN, document)
        write_json(new / runs.SMALLER, report)
        replace_folder(new, output, scratch)


def table(report: Mapping[str, Any]) -> str:
    """The report's figures as lines of text."""
    before, after = report["before"], report["after"]
    rows = [("parameters", "d"), ("bytes", "d"), ("multiply_adds", "d"), ("validation_accuracy", ".4f")]
    rows.append(("test_accuracy", ".4f"))
    lines = [f"{'':<20}  {'before':>12}  {'after':>12}"]
    lines += [f"{name.replace('_', ' '):<20}  {before[name]:>12{form}}  {after[name]:>12{form}}" for name, form in rows]
    found = Comparison(**report["comparison"])
    lines.append(
        f"test accuracy {-found.drop:+.2f} points, 95 % interval {-found.high:+.2f} to {-found.low:+.2f}; both give "
        f"{found.agreement:.2%} of the examples the same class"
    )
    lines.append(f"the class that changed for the worst: {found.worst_label}, recall {found.worst_change:+.2f} points")
    if report["gate"]["reason"]:
        lines.append(f"kept although {report['gate']['reason']}")
    return "\n".join(lines)
