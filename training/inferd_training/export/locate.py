"""Where two runtimes part: the first layer whose output differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from inferd_training import models
from inferd_training.errors import TrainingError
from inferd_training.export.convert import convert
from inferd_training.export.runtime import Runtime
from inferd_training.export.weights import save
from inferd_training.families.family import Scaling

if TYPE_CHECKING:
    import keras

_ROWS = 8
"""Enough to meet a fault that shows on a few rows, few enough to hold every layer's output."""


def first_faulty_layer(model: keras.Model, raw: models.Arrays, preprocessing: Mapping[str, Scaling]) -> str:
    """One clause for a message: which layer is the first whose output differs, or why none can be named.

    Converts the model once more, with every layer's output as an output.
    """
    probe = models.probe(model)
    if probe is None:
        return "its layers cannot be compared, since it is not a functional or sequential model"
    few = {name: array[:_ROWS] for name, array in raw.items()}
    try:
        expected = models.predict(probe, few, _ROWS, preprocessing)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "probe.onnx"
            save(convert(probe, preprocessing), path)
            found = Runtime(path).run(few, _ROWS)
    except TrainingError as error:
        return f"its layers cannot be compared ({error})"
    for name, array in expected.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        if not np.isfinite(array).all():
            return f"the layer '{name}' is the first whose output is not finite in Keras itself"
        if not np.allclose(found[name], array, rtol=1e-3, atol=1e-4):
            return f"the layer '{name}' is the first whose output differs"
    return "every layer of a fresh conversion agrees: the file is not this model's conversion, or small errors add up"
