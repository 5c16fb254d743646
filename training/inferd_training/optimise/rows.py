"""The rows that an optimisation needs: some to calibrate on, others to be judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferd_training.data import datasets
from inferd_training.errors import DataError
from inferd_training.optimise.judge import HeldOut

CALIBRATION_ROWS = 512
"""Enough that the ranges of a small network's activations change no more; entropy and percentile keep every value."""

TRUTH = "truth"
"""The array in an evaluation file that holds the true class of each row."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """`calibration`: inputs by name, None where there are none."""

    calibration: Mapping[str, NDArray[Any]] | None
    held_out: HeldOut


def of_known_data(report: Mapping[str, Any], data_folder: Path | None, tell: Tell) -> Rows:
    """The training and test rows of the data set that an export's report names.

    Raises DataError where it names none, or where the data found are not those.
    """
    name = report["data"].get("name")
    if name is None or len(report["labels"]) != 1 or len(report["model"]["inputs"]) != 1:
        raise DataError(
            "the export does not say which data it was trained on: give rows by --calibration and --evaluation"
        )
    data = datasets.load(name, data_folder, tell=tell)
    if dict(data.sha256) != report["data"]["sha256"]:
        raise DataError(
            f"the data from {data.source} are not those that the export was trained on (their SHA-256 differ): "
            "give the same files by --data-dir"
        )
    ((output, labels),) = report["labels"].items()
    (entry,) = report["model"]["inputs"]
    spread = np.linspace(0, len(data.train) - 1, CALIBRATION_ROWS).astype(np.intp)
    return Rows(
        {entry: data.train.inputs[spread]},
        HeldOut(
            {entry: data.test.inputs},
            output,
            data.test.truth.astype(np.int64),
            tuple(labels),
            f"the {len(data.test)} test rows of {data.name}",
        ),
    )


def of_files(
    report: Mapping[str, Any],
    calibration: Path | None,
    evaluation: Path,
    original: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]],
) -> Rows:
    """Rows from `.npz` files, one array an input; the evaluation's may have the true classes beside them.

    Without them the classes that `original`, which answers inputs by name, gives are taken for the truth.
    Raises DataError where a file does not fit.
    """
    names = set(report["model"]["inputs"])
    rows = _read(evaluation, names)
    truth = rows.pop(TRUTH, None)
    calibrated = None if calibration is None else _read(calibration, names)
    if calibrated is not None:
        calibrated.pop(TRUTH, None)
        calibrated = {name: array[:CALIBRATION_ROWS] for name, array in calibrated.items()}
    answers = original(rows)
    output = next(iter(report["labels"]), None) or next(iter(answers))
    if answers[output].ndim < 2:
        raise DataError(
            f"the output '{output}' is {list(answers[output].shape)}, where an axis of classes was expected: a model "
            "without classes cannot be judged"
        )
    classes = answers[output].shape[-1]
    labels = tuple(report["labels"].get(output, [str(number) for number in range(classes)]))
    count = len(next(iter(rows.values())))
    if truth is not None and truth.shape != (count,):
        raise DataError(
            f"'{TRUTH}' in {evaluation} is {list(truth.shape)}, where [{count}] whole numbers were expected"
        )
    return Rows(
        calibrated,
        HeldOut(
            rows,
            output,
            (answers[output].argmax(axis=-1) if truth is None else truth).astype(np.int64),
            labels,
            f"{count} rows given by the user" + ("" if truth is not None else ", the original's answers for the truth"),
            measured_by_original=truth is None,
        ),
    )


def _read(path: Path, names: set[str]) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a .npz file of arrays: {error}") from error
    if set(arrays) - {TRUTH} != names:
        raise DataError(
            f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, where the inputs {', '.join(sorted(names))} were "
            f"expected, and perhaps '{TRUTH}'"
        )
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{path} holds arrays of different lengths, or empty ones: as many rows of each were expected")
    return arrays
