"""What every peer serves: the same ONNX Runtime sessions as inferd's, one thread each, not spinning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

MODELS = {"FP32": "cnn-fp32", "UINT8": "cnn-uint8"}
DTYPES = {"FP32": np.float32, "UINT8": np.uint8}
INPUT, OUTPUT = "image", "probabilities"


def repository() -> Path:
    """The model repository, which the benchmark names in the environment."""
    return Path(os.environ["BENCH_REPOSITORY"])


def load(datatype: str) -> ort.InferenceSession:
    """A session on the variant whose input has that datatype."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = repository() / MODELS[datatype] / "1" / "model.onnx"
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, batch: Any) -> Any:
    """Probabilities, one row for each of the batch."""
    return session.run([OUTPUT], {INPUT: batch})[0]
