"""The run folder: what a training leaves, and what the later stages read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inferd_training.data.dataset import Dataset
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

    `labels` are by output name, `preprocessing` and `tokeniser` by input name. `training`, `data` and `tokeniser`
    become the artefact's metadata.
    """

    folder: Path
    dataset: str
    data_folder: Path | None
    labels: Mapping[str, list[str]]
    preprocessing: Mapping[str, Scaling]
    tokeniser: Mapping[str, Any]
    training: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The saved Keras model."""
        return self.folder / MODEL


def describe(
    family: Family,
    data: Dataset,
    data_folder: Path | None,
    input_name: str,
    output_name: str,
    training: Mapping[str, Any],
    model: Path,
) -> dict[str, Any]:
    """The document kept as `run.json`: all that a later stage must know.

    `input_name` is the model's only input, `output_name` its only output, which has the labels.
    """
    described = {"name": data.name, "source": data.source, "sha256": dict(data.sha256)}
    if data.packages:
        described["packages"] = dict(data.packages)
    return {
        "model_sha256": sha256(model),
        "dataset": data.name,
        "data_folder": None if data_folder is None else str(data_folder.resolve()),
        "labels": {output_name: list(data.labels)},
        "preprocessing": {name: asdict(scaling) for name, scaling in family.preprocessing.items()},
        "tokeniser": {input_name: dict(data.kind.tokeniser)} if data.kind.tokeniser else {},
        "training": dict(training),
        "data": described,
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
            # Runs of images have none, and neither have those of before there were texts.
            tokeniser=document.get("tokeniser", {}),
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
