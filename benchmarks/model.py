"""The reference CNN as an ONNX graph, made here so that a benchmark needs neither TensorFlow nor a training run.

The architecture is that of the family `cnn`: Conv 32, pool, Conv 64, pool, Dense 128, softmax. The weights are random:
how long a run takes does not depend on them (`limit.compare` holds it against a trained export where there is one).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 28
CLASSES = 10
INPUT = "image"
OUTPUT = "probabilities"
MODELS = {"FP32": "cnn-fp32", "UINT8": "cnn-uint8"}
"""The name of the model by the datatype of its input."""

NUMPY = {"FP32": np.dtype(np.float32), "UINT8": np.dtype(np.uint8)}

_OPSET = 17
_IR_VERSION = 8
_SEED = 20


def write_repository(root: Path) -> None:
    """Writes both variants into a model repository, `<model>/1/model.onnx`."""
    for datatype, name in MODELS.items():
        path = model_file(root, datatype)
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(_build(datatype, name), path)


def model_file(root: Path, datatype: str) -> Path:
    """Where a variant's file lies in a repository."""
    return root / MODELS[datatype] / "1" / "model.onnx"


def write_copies(source: Path, root: Path, datatype: str, copies: int) -> None:
    """A repository with the model under its own name and `copies - 1` more, whose files share the disk space."""
    shutil.rmtree(root, ignore_errors=True)
    for number in range(copies):
        name = MODELS[datatype] if number == 0 else f"{MODELS[datatype]}-{number:03d}"
        path = root / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        os.link(model_file(source, datatype), path)


def rows(datatype: str, count: int) -> NDArray[np.generic]:
    """`count` different images of noise in the model's input datatype, the same ones every time."""
    pixels = np.random.default_rng(_SEED).integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)
    return pixels if datatype == "UINT8" else pixels.astype(np.float32) / np.float32(255)


def _build(datatype: str, name: str) -> onnx.ModelProto:
    random = np.random.default_rng(_SEED)

    def weights(label: str, *shape: int) -> onnx.TensorProto:
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        values = random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        return numpy_helper.from_array(values, label)

    def bias(label: str, size: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.full(size, 0.01, np.float32), label)

    initializers = [
        numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"),
        numpy_helper.from_array(np.array([-1, 1, SIDE, SIDE], np.int64), "channels_first"),
        numpy_helper.from_array(np.array([-1, 1600], np.int64), "flat_shape"),
        weights("w1", 32, 1, 3, 3),
        bias("b1", 32),
        weights("w2", 64, 32, 3, 3),
        bias("b2", 64),
        weights("w3", 1600, 128),
        bias("b3", 128),
        weights("w4", 128, CLASSES),
        bias("b4", CLASSES),
    ]
    scaling = [
        helper.make_node("Cast", [INPUT], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
    ]
    first = "scaled" if datatype == "UINT8" else INPUT
    nodes = [
        *(scaling if datatype == "UINT8" else []),
        helper.make_node("Reshape", [first, "channels_first"], ["x"]),
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        # Keras flattens with the channels last; so does the export.
        helper.make_node("Transpose", ["p2"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["m3"]),
        helper.make_node("Add", ["m3", "b3"], ["a3"]),
        helper.make_node("Relu", ["a3"], ["r3"]),
        helper.make_node("MatMul", ["r3", "w4"], ["m4"]),
        helper.make_node("Add", ["m4", "b4"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUT], axis=-1),
    ]
    element = TensorProto.UINT8 if datatype == "UINT8" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(INPUT, element, ["batch", SIDE, SIDE, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", CLASSES])],
        initializers if datatype == "UINT8" else initializers[1:],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(made)
    return made
