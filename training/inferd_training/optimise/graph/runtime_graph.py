"""ONNX Runtime's own optimised graph, written to a file: for one version of it on one kind of machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

import onnxruntime as ort

from inferd_training.errors import OptimiseError
from inferd_training.export.runtime import PROVIDER
from inferd_training.files import hidden_folder, sync_one

Level = Literal["basic", "extended", "all"]
"""ONNX Runtime's levels. From "extended" on the file holds the runtime's own operators, and with "all" those that were
chosen for this machine's processor."""

_LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def offline(proto_path: Path, output_path: Path, level: Level = "all") -> Path:
    """Optimises the ONNX file `proto_path` as ONNX Runtime does on loading it, and writes the graph to `output_path`.

    What is saved is load time: load the file with the same version of ONNX Runtime, on the same kind of machine, with
    its optimisations off. It is derived, not the artefact to publish. It appears whole or not at all, and replaces what
    was there. Returns `output_path`. Raises OptimiseError.
    """
    if level not in get_args(Level):
        raise OptimiseError(f"the level '{level}' came, where one of {', '.join(get_args(Level))} was expected")
    if not proto_path.is_file():
        raise OptimiseError(f"{proto_path} is missing: give an ONNX file")
    if output_path.exists() and (output_path.is_dir() or output_path.samefile(proto_path)):
        raise OptimiseError(f"{output_path} cannot be written over: give the path of a new file")
    with hidden_folder(output_path.parent) as scratch:
        written = scratch / output_path.name
        _run(proto_path, _LEVELS[level], written)
        # What was written must load as it is to be used.
        _run(written, ort.GraphOptimizationLevel.ORT_DISABLE_ALL, None)
        sync_one(written)
        os.replace(written, output_path)
    sync_one(output_path.parent)
    return output_path


def _run(model: Path, level: ort.GraphOptimizationLevel, written: Path | None) -> None:
    options = ort.SessionOptions()
    # It warns that the file is for this machine only, which is why it is made.
    options.log_severity_level = 4
    options.graph_optimization_level = level
    if written is not None:
        options.optimized_model_filepath = str(written)
    try:
        ort.InferenceSession(str(model), options, providers=[PROVIDER])
    except Exception as error:  # the runtime's own types share no base
        reason = " ".join(str(error).split())
        raise OptimiseError(f"ONNX Runtime {ort.__version__} cannot optimise {model.name}: {reason}") from error
    if written is not None and not written.is_file():
        raise OptimiseError(f"ONNX Runtime {ort.__version__} wrote no graph for {model.name}: there is none to use")
