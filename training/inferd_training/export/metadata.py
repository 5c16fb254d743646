"""What the ONNX file says about itself (keys in `inferd_protocol.artefact`)."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import onnx
from inferd_protocol import artefact

from inferd_training.errors import ExportError
from inferd_training.families.family import Scaling

_SHAPING = ("inferd", "keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tf2onnx")


def versions() -> dict[str, str]:
    """The version of Python and of every package that shapes an artefact, by name."""
    return {"python": platform.python_version(), **{name: version(name) for name in _SHAPING}}


def annotate(
    proto: onnx.ModelProto,
    *,
    labels: Mapping[str, Sequence[str]],
    preprocessing: Mapping[str, Scaling],
    tokeniser: Mapping[str, Any],
    training: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Writes the metadata into `proto`, without empty parts. Raises ExportError where labels do not fit an output."""
    _check_labels(proto, labels)
    parts: dict[str, Mapping[str, Any]] = {
        artefact.LABELS_KEY: labels,
        artefact.PREPROCESSING_KEY: {name: asdict(scaling) for name, scaling in preprocessing.items()},
        artefact.TOKENISER_KEY: tokeniser,
        artefact.TRAINING_KEY: training,
        artefact.DATA_KEY: data,
        artefact.VERSIONS_KEY: versions(),
    }
    onnx.helper.set_model_props(proto, {key: json.dumps(part, sort_keys=True) for key, part in parts.items() if part})


def preprocessing_of(proto: onnx.ModelProto) -> dict[str, Scaling]:
    """The preprocessing that `annotate` wrote, by input name; empty where there is none."""
    for entry in proto.metadata_props:
        if entry.key == artefact.PREPROCESSING_KEY:
            return {name: Scaling(**scaling) for name, scaling in json.loads(entry.value).items()}
    return {}


def _check_labels(proto: onnx.ModelProto, labels: Mapping[str, Sequence[str]]) -> None:
    outputs = {output.name: output for output in proto.graph.output}
    for name, given in labels.items():
        if name not in outputs:
            raise ExportError(f"labels came for '{name}', where the outputs are {', '.join(outputs)}: correct the name")
        last = outputs[name].type.tensor_type.shape.dim[-1]
        if last.dim_value != len(given):
            extent = last.dim_value or "free"
            raise ExportError(
                f"{len(given)} labels came for '{name}', whose last axis is {extent}: give one label per element of it"
            )
