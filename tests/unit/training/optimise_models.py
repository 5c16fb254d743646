"""Small classifiers and their exports, built without Keras: what `inferd optimize` is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4
SIZE = 8


def classifier(*, detours: int = 0, outlier: float = 0.0, seed: int = 0) -> onnx.ModelProto:
    """image uint8 [batch, 8, 8, 1] -> probabilities [batch, 4]: a scaled convolution and a dense layer.

    `detours` are products with the identity: they cost time and change nothing. `outlier`: a channel of the
    convolution answers with so much that one range for all leaves the others nothing in 8 bits; its weights in the
    dense layer are as small, so that it matters as much as they do.
    """
    random = np.random.default_rng(seed)
    filters = random.normal(0, 0.5, (8, 1, 3, 3)).astype(np.float32)
    dense = random.normal(0, 0.5, (8 * 4 * 4, CLASSES)).astype(np.float32)
    if outlier:
        filters[0] *= outlier
        dense.reshape(8, 16, CLASSES)[0] /= outlier
    constants = {
        "scale": np.float32(1 / 255),
        "filters": filters,
        "bias": np.zeros(8, np.float32),
        "flat": np.array([-1, 128], np.int64),
        "dense": dense,
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["moved"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["moved", "filters", "bias"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("MaxPool", ["relu"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    nodes.append(helper.make_node("Reshape", ["pool", "flat"], ["detour0"]))
    nodes += [
        helper.make_node("MatMul", [f"detour{number}", "same"], [f"detour{number + 1}"]) for number in range(detours)
    ]
    if detours:
        constants["same"] = np.eye(128, dtype=np.float32)
    nodes += [
        helper.make_node("MatMul", [f"detour{detours}", "dense"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, {"inferd.labels": json.dumps({"probabilities": labels()})})
    return made


def labels() -> Sequence[str]:
    return [f"class {number}" for number in range(CLASSES)]


def images(rows: int, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, SIZE, SIZE, 1), np.uint8)


def write_export(folder: Path, proto: onnx.ModelProto) -> Path:
    """As `inferd export` leaves one, as far as others read it."""
    folder.mkdir(parents=True)
    content = proto.SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    report = {
        "format": 1,
        "verified": True,
        "model": {
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "inputs": {"image": "uint8"},
            "outputs": {"probabilities": "float32"},
        },
        "labels": {"probabilities": labels()},
        "data": {},
        "training": {},
        "metrics": {},
        "preprocessing": {},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder
