"""The life cycle's stages, from folder to folder, as the commands run them. Those that need TensorFlow load it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inferd_training import runs
from inferd_training.data import datasets
from inferd_training.data.dataset import Dataset
from inferd_training.data.known import DATASETS
from inferd_training.errors import DataError, ModelError
from inferd_training.evaluate import Evaluation, evaluate
from inferd_training.export.metadata import versions
from inferd_training.export.samples import RawInput, Samples, load_samples, random_samples
from inferd_training.families.family import Scaling
from inferd_training.families.registry import FAMILIES
from inferd_training.files import hidden_folder, holds_only, replace_folder, sha256, write_json

if TYPE_CHECKING:
    from inferd_training.export.parity import Tolerance

Tell = Callable[[str], None]


def train(
    output: Path,
    *,
    dataset: str,
    data_folder: Path | None = None,
    family: str = "cnn",
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    seed: int = 0,
    tell: Tell,
) -> runs.Run:
    """Trains a model of the family and writes the run folder `output`, whole or not at all; an earlier run is replaced.

    Raises DataError or ModelError.
    """
    declared = FAMILIES.get(family)
    if declared is None:
        raise ModelError(f"'{family}' is not a model family: choose from {', '.join(FAMILIES)}")
    if output.exists() and not (output.is_dir() and holds_only(output, runs.FILES)):
        raise ModelError(f"{output} holds other files than an earlier training's: give an empty or new folder")
    kind = datasets.known(dataset).kind
    if kind != declared.kind:
        families = [other.name for other in FAMILIES.values() if other.kind == kind]
        fitting = [other.name for other in DATASETS.values() if other.kind == declared.kind]
        raise ModelError(
            f"the family '{family}' takes {declared.kind.name}, and '{dataset}' is {kind.name}: choose --family "
            f"{' or '.join(families)}, or --dataset {' or '.join(fitting)}"
        )
    data = datasets.load(dataset, data_folder, tell=tell)
    tell(f"{data.name}: {len(data.train)} training {kind.examples} from {data.source}")
    from inferd_training import fit, models, plots
    from inferd_training.progress import Bars

    chosen = fit.settings(
        declared,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=seed,
    )
    trained = fit.train(data, declared, chosen, Bars(tell))
    tell(f"trained in {trained.seconds:.0f} s")
    training = {
        "family": declared.name,
        "settings": asdict(chosen),
        "seconds": round(trained.seconds, 1),
        "versions": versions(),
        "validation_accuracy": trained.history["val_accuracy"][-1],
    }
    described = models.signature(trained.model)
    (taken,), (labelled,) = described.inputs, described.outputs
    with hidden_folder(output.parent) as scratch:
        new = scratch / "run"
        new.mkdir()
        trained.model.save(new / runs.MODEL)
        write_json(new / runs.HISTORY, trained.history)
        plots.learning_curves(trained.history, new / runs.CURVES)
        document = runs.describe(declared, data, data_folder, taken.name, labelled.name, training, new / runs.MODEL)
        write_json(new / runs.RUN, document)
        replace_folder(new, output, scratch)
    return runs.load(output)


def evaluate_run(folder: Path, *, data_folder: Path | None = None, tell: Tell) -> Evaluation:
    """Evaluates a run's model on the test examples; adds `metrics.json` and the confusion matrix to the run folder.

    Raises DataError or ModelError.
    """
    run = runs.load(folder)
    data = data_of(run, data_folder, tell)
    from inferd_training import models, plots

    ((output, labels),) = run.labels.items()
    model = models.load(run.model)
    (taken,) = models.signature(model).inputs
    answers = models.predict(model, {taken.name: data.test.inputs}, 256, run.preprocessing)
    figures = evaluate(answers[output], data.test.truth, tuple(labels))
    write_json(folder / runs.METRICS, {"model_sha256": sha256(run.model), **figures.as_json()})
    plots.confusion_matrix(figures.confusion, tuple(labels), folder / runs.CONFUSION)
    return figures


def export_run(
    folder: Path, output: Path, *, data_folder: Path | None = None, tolerance: Tolerance | None = None, tell: Tell
) -> dict[str, Any]:
    """Exports a run's model, verified on its test examples; returns the report. Raises as `pipeline.export` does."""
    run = runs.load(folder)
    data = data_of(run, data_folder, tell)
    from inferd_training.export import pipeline

    job = pipeline.Job(
        model=run.model,
        labels=run.labels,
        preprocessing=run.preprocessing,
        tokeniser=run.tokeniser,
        samples=_test_examples(data),
        training=run.training,
        data=run.data,
        tolerance=tolerance,
    )
    return pipeline.export(job, output, tell)


def export_file(
    model: Path,
    output: Path,
    *,
    labels: Path | None = None,
    preprocessing: Path | None = None,
    samples: Path | None = None,
    tolerance: Tolerance | None = None,
    tell: Tell,
) -> dict[str, Any]:
    """Exports any saved Keras model; returns the report. Raises as `pipeline.export` does.

    `labels`: a text file with one label a line (for a model with one output), or JSON {output: [label, ...]}.
    `preprocessing`: JSON {input: {"dtype": ..., "scale": ..., "offset": ...}}. `samples`: a .npz, one array an input.
    """
    from inferd_training import models
    from inferd_training.export import pipeline

    job = pipeline.Job(
        model=model,
        labels=_read_labels(labels, [t.name for t in models.signature(models.load(model)).outputs]) if labels else {},
        preprocessing=_read_preprocessing(preprocessing) if preprocessing else {},
        samples=_samples(samples),
        tolerance=tolerance,
    )
    return pipeline.export(job, output, tell)


def verify(
    artefact: Path,
    *,
    keras_model: Path | None = None,
    data_folder: Path | None = None,
    samples: Path | None = None,
    tolerance: Tolerance | None = None,
    tell: Tell,
) -> dict[str, Any]:
    """Verifies an export or any ONNX file; with `keras_model`, a .keras file or a run folder, its parity too.

    A run's model is compared on the run's test examples. Raises as `pipeline.verify` does.
    """
    chosen = _samples(samples)
    if keras_model is not None and keras_model.is_dir():
        run = runs.load(keras_model)
        keras_model = run.model
        if samples is None:
            chosen = _test_examples(data_of(run, data_folder, tell))
    from inferd_training.export import pipeline

    return pipeline.verify(artefact, keras_model=keras_model, samples=chosen, tolerance=tolerance)


def data_of(run: runs.Run, data_folder: Path | None, tell: Tell) -> Dataset:
    """The data that a run was trained on, from `data_folder` or from where they were. Raises DataError for others."""
    data = datasets.load(run.dataset, data_folder or run.data_folder, tell=tell)
    if dict(data.sha256) != run.data["sha256"]:
        raise DataError(
            f"the data from {data.source} are not those that {run.folder} was trained on (their SHA-256 differ): "
            "give the same files by --data-dir"
        )
    return data


def _test_examples(data: Dataset) -> Callable[[tuple[RawInput, ...]], Samples]:
    def samples(inputs: tuple[RawInput, ...]) -> Samples:
        (taken,) = inputs
        description = f"the {len(data.test)} test {data.kind.examples} of {data.name}"
        return Samples({taken.name: data.test.inputs}, description, data.test.truth)

    return samples


def _samples(path: Path | None) -> Callable[[tuple[RawInput, ...]], Samples]:
    return random_samples if path is None else lambda inputs: load_samples(path, inputs)


def _read_labels(path: Path, outputs: Sequence[str]) -> Mapping[str, list[str]]:
    text = _read_text(path)
    if text.lstrip().startswith("{"):
        document = _parse_json(text, path)
        if not all(
            isinstance(given, list) and all(isinstance(label, str) for label in given) for given in document.values()
        ):
            raise ModelError(f"{path} was expected to hold JSON {{output: [label, ...]}}: correct it")
        return document
    if len(outputs) != 1:
        raise ModelError(
            f"the model has the outputs {', '.join(outputs)}, so that {path} must be JSON {{output: [label, ...]}}"
        )
    return {outputs[0]: [line.strip() for line in text.splitlines() if line.strip()]}


def _are_labels(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(label, str) for label in given)


def _read_preprocessing(path: Path) -> Mapping[str, Scaling]:
    document = _parse_json(_read_text(path), path)
    try:
        return {
            name: Scaling(np.dtype(given["dtype"]).name, float(given["scale"]), float(given.get("offset", 0.0)))
            for name, given in document.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f'{path} was expected to hold JSON {{input: {{"dtype": "uint8", "scale": 0.0039, "offset": 0}}}}: fix it'
        ) from error


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}): correct it") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path} was expected to hold a JSON object: correct it")
    return document


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read as text: {error}") from error
