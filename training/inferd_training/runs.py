"""The run folder: what a training leaves, and what the later stages read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferd_training.data.datasets import ImageData
from inferd_training.errors import ModelError
from inferd_training.families.family import Family, Scaling
from inferd_training.files import sha256

MODEL = "model.keras"
RUN = "run.json"
HISTORY = "history.json"
CURVES = "learning-curves.png"
METRICS = "metrics.json"
CONFUSION = "confusion-matrix.png"
SMALLER = "smaller.json"
FILES = frozenset({MODEL, RUN, HISTORY, CURVES, METRICS, CONFUSION, SMALLER})
"""All that a run folder may hold. Whoever finds something else there leaves the folder alone."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training. `data_folder` is the folder that the user gave for the data, if any.

    `labels` are by output name, `preprocessing` by input name. `training` and `data` become the artefact's metadata.
    """

    folder: Path
    dataset: str
    data_folder: Path | None
    labels: Mapping[str, list[str]]
    preprocessing: Mapping[str, Scaling]
    training: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The saved Keras model."""
        return self.folder / MODEL


def describe(
    family: Family,
    data: ImageData,
    data_folder: Path | None,
    output: str,
    training: Mapping[str, Any],
    model: Path,
) -> dict[str, Any]:
    """The document kept as `run.json`: all that a later stage must know. `output` is the output that has labels."""
    return {
        "model_sha256": sha256(model),
        "dataset": data.name,
        "data_folder": None if data_folder is None else str(data_folder.resolve()),
        "labels": {output: list(data.labels)},
        "preprocessing": {name: asdict(scaling) for name, scaling in family.preprocessing.items()},
        "training": dict(training),
        "data": {"name": data.name, "source": data.source, "sha256": dict(data.sha256)},
    }


def load(folder: Path) -> Run:
    """Reads a run folder. Raises ModelError where it is none, or its model is not the one that was trained there."""
    path = folder / RUN
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        run = Run(
            folder=folder,
            dataset=document["dataset"],
            data_folder=None if document["data_folder"] is None else Path(document["data_folder"]),
            labels=document["labels"],
            preprocessing={name: Scaling(**scaling) for name, scaling in document["preprocessing"].items()},
            training=document["training"],
            data=document["data"],
        )
        expected = document["model_sha256"]
    except OSError as error:
        raise ModelError(
            f"{folder} is not a run folder ({RUN}: {error.strerror}): give what `inferd train` wrote"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged ({error!r}): train again") from error
    if not run.model.is_file():
        raise ModelError(f"{folder} lacks {MODEL}: train again")
    if sha256(run.model) != expected:
        raise ModelError(
            f"{run.model} is not the model that was trained there: train again, or export the file by its name"
        )
    return run
