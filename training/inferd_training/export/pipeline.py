"""The export: convert, annotate, verify, keep. Done means verified; a breach leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from inferd_protocol.artefact import GOLDEN_FILE, MODEL_FILE, REPORT_FILE, WEIGHTS_FILE
from numpy.typing import NDArray

from inferd_training import models
from inferd_training.errors import ExportError, VerificationError
from inferd_training.evaluate import evaluate
from inferd_training.export.convert import MOST_CONSTANT_BYTES, OPSET, convert
from inferd_training.export.golden import check_golden, write_golden
from inferd_training.export.locate import first_faulty_layer
from inferd_training.export.metadata import annotate, preprocessing_of, versions
from inferd_training.export.parity import BATCHES, Parity, ParityError, Tolerance, check_parity
from inferd_training.export.report import check_report, external_files
from inferd_training.export.runtime import PROVIDER, Runtime, version
from inferd_training.export.samples import RawInput, Samples, random_samples
from inferd_training.export.structure import Structure, check_structure, read
from inferd_training.export.weights import EXTERNAL_FROM, save
from inferd_training.families.family import Scaling
from inferd_training.files import hidden_folder, holds_only, replace_folder, sha256, write_json

if TYPE_CHECKING:
    import keras

REPORT_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What to export. `labels` are by output name, `preprocessing` and `tokeniser` by input name; all but the model may
    be left out.

    `samples` gets the raw inputs and gives what the parity is tested on. `training` and `data` go into the metadata.
    Weights of `external_from` bytes or more lie in a file beside the model, and are kept out of the conversion.
    """

    model: Path
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    preprocessing: Mapping[str, Scaling] = field(default_factory=dict)
    tokeniser: Mapping[str, Any] = field(default_factory=dict)
    samples: Callable[[tuple[RawInput, ...]], Samples] = random_samples
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    tolerance: Tolerance | None = None
    opset: int = OPSET
    external_from: int = EXTERNAL_FROM


def export(job: Job, output: Path, tell: Callable[[str], None] = lambda _line: None) -> dict[str, Any]:
    """Exports to the folder `output` and returns the report.

    What is written: `model.onnx`, for a large model `model.onnx.data`, `golden.npz`, `report.json`.

    An earlier export there is replaced, but only by one that passed. Raises ModelError, ExportError, DataError or
    VerificationError, and then leaves `output` as it was.
    """
    ours = {MODEL_FILE, WEIGHTS_FILE, GOLDEN_FILE, REPORT_FILE}
    if output.exists() and not (output.is_dir() and holds_only(output, ours)):
        raise ExportError(f"{output} holds other files than an earlier export's: give an empty or new folder")
    with hidden_folder(output.parent) as scratch:
        new = scratch / "export"
        new.mkdir()
        report = _export_into(job, new, tell)
        write_json(new / REPORT_FILE, report)
        replace_folder(new, output, scratch)
    return report


def _export_into(job: Job, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    model = models.load(job.model)
    samples = job.samples(raw_inputs(model, job.preprocessing))
    tell("converting")
    # Where weights are to lie outside of a small model, they are kept out of its conversion too.
    constant_bytes = min(MOST_CONSTANT_BYTES, job.external_from)
    proto = convert(model, job.preprocessing, job.opset, constant_bytes=constant_bytes)
    tell(f"computing Keras's answers on {samples.description}")
    reference = Reference(model, job.preprocessing, samples)
    metrics = _metrics(job, samples, reference)
    training = {**job.training, **({"metrics": metrics} if metrics else {})}
    annotate(
        proto,
        labels=job.labels,
        preprocessing=job.preprocessing,
        tokeniser=job.tokeniser,
        training=training,
        data=job.data,
    )
    path = folder / MODEL_FILE
    try:
        save(proto, path, job.external_from)
    except OSError as error:
        raise ExportError(f"the model cannot be written to {folder.parent.parent}: {error.strerror}") from error
    del proto
    tell("checking the graph")
    structure, runtime = check_structure(path, models.layer_names(model))
    tell("comparing ONNX Runtime with Keras")
    parity = compare(model, runtime, reference, samples, job.preprocessing, job.tolerance)
    golden = write_golden(folder / GOLDEN_FILE, samples, parity.onnx, runtime, parity.tolerance)
    if not golden:
        tell(f"no {GOLDEN_FILE}: one row of the samples is too large for it")
    if metrics:
        (output,) = job.labels
        onnx_accuracy = evaluate(parity.onnx[output], _truth(samples), tuple(job.labels[output])).accuracy
        metrics = {**metrics, "onnx_accuracy": onnx_accuracy}
    return {**_report(path, job, samples, structure, parity, metrics), **golden}


class Reference:
    """Keras's answers to the samples; those at the full batch size are computed once."""

    def __init__(self, model: keras.Model, preprocessing: Mapping[str, Scaling], samples: Samples) -> None:
        self._model = model
        self._preprocessing = preprocessing
        self.full = max(BATCHES)
        self.answers = models.predict(model, samples.inputs, self.full, preprocessing)

    def __call__(self, raw: models.Arrays, batch: int) -> dict[str, NDArray[Any]]:
        """The outputs by name for rows of the samples."""
        if batch == self.full:
            return self.answers
        return models.predict(self._model, raw, batch, self._preprocessing)


def compare(
    model: keras.Model,
    runtime: Runtime,
    reference: Reference,
    samples: Samples,
    preprocessing: Mapping[str, Scaling],
    tolerance: Tolerance | None,
) -> Parity:
    """`check_parity`, with the layer named where it fails: raises VerificationError."""
    try:
        return check_parity(runtime, reference, samples, tolerance=tolerance)
    except ParityError as error:
        layer = first_faulty_layer(model, samples.inputs, preprocessing)
        raise VerificationError(f"{error}; {layer}") from error


def raw_inputs(model: keras.Model, preprocessing: Mapping[str, Scaling]) -> tuple[RawInput, ...]:
    """The model's inputs as clients send them."""
    return tuple(
        RawInput(
            tensor.name,
            tensor.shape,
            preprocessing[tensor.name].dtype if tensor.name in preprocessing else tensor.dtype,
            models.index_limit(model, tensor.name, integer="int" in tensor.dtype),
        )
        for tensor in models.signature(model).inputs
    )


def verify(
    path: Path,
    *,
    keras_model: Path | None = None,
    samples: Callable[[tuple[RawInput, ...]], Samples] = random_samples,
    tolerance: Tolerance | None = None,
) -> dict[str, Any]:
    """Verifies an ONNX file, or a folder with one, again. Returns what was found, as the report has it.

    With a report beside the file, the file must be the one reported on, and so must golden samples be; where there are
    any, it must still answer them so. With the Keras model, the parity is tested too.
    Raises VerificationError at the first breach, and ModelError or DataError as `export` does.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise VerificationError(f"{file} is missing: give an ONNX file or the folder of an export")
    report = file.parent / REPORT_FILE
    if report.is_file():
        check_report(file, report)
    model = models.load(keras_model) if keras_model else None
    structure, runtime = check_structure(file, models.layer_names(model) if model else ())
    found = {"model": _model_part(file, structure), "reported": report.is_file()}
    golden = file.parent / GOLDEN_FILE
    if golden.is_file():
        found["golden"] = {"rows": check_golden(golden, runtime)}
    if model is not None:
        preprocessing = preprocessing_of(read(file))
        chosen = samples(raw_inputs(model, preprocessing))
        reference = Reference(model, preprocessing, chosen)
        parity = compare(model, runtime, reference, chosen, preprocessing, tolerance)
        found["parity"] = {"samples": chosen.description, **parity.as_json()}
    return found


def _truth(samples: Samples) -> NDArray[np.integer[Any]]:
    if samples.truth is None:
        raise ExportError("the samples have no true classes")
    return samples.truth


def _metrics(job: Job, samples: Samples, reference: Reference) -> dict[str, Any]:
    """Keras's figures on the samples, where their classes are known; empty otherwise."""
    if samples.truth is None or len(job.labels) != 1:
        return {}
    ((output, labels),) = job.labels.items()
    answers = reference.answers.get(output)
    if answers is None or not np.isfinite(answers).all():
        # The annotation, or the parity test, says what is wrong with it.
        return {}
    figures = evaluate(answers, samples.truth, tuple(labels))
    return {"accuracy": figures.accuracy, "loss": figures.loss, "examples": figures.examples}


def _file_part(path: Path) -> dict[str, Any]:
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _model_part(path: Path, structure: Structure) -> dict[str, Any]:
    return {
        **_file_part(path),
        "weights": {name: _file_part(path.parent / name) for name in external_files(path)},
        "opset": structure.opset,
        "ir_version": structure.ir_version,
        "inputs": structure.inputs,
        "outputs": structure.outputs,
        "loops": [asdict(loop) for loop in structure.loops],
        "runtime": {
            "onnxruntime": version(),
            "provider": PROVIDER,
            "newest_opset": structure.limits.opset,
            "newest_ir_version": structure.limits.ir,
        },
    }


def _report(
    path: Path, job: Job, samples: Samples, structure: Structure, parity: Parity, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": REPORT_FORMAT,
        # A breach raises before a report is written: there is no report of a failure.
        "verified": True,
        "model": _model_part(path, structure),
        "keras_sha256": sha256(job.model),
        "parity": {"samples": samples.description, **parity.as_json()},
        "labels": {name: list(labels) for name, labels in job.labels.items()},
        "preprocessing": {name: asdict(scaling) for name, scaling in job.preprocessing.items()},
        "tokeniser": dict(job.tokeniser),
        "training": dict(job.training),
        "data": dict(job.data),
        "metrics": dict(metrics),
        "versions": versions(),
    }
