"""Small ONNX models for tests, made where they are needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

Shape = Sequence[int | str | None]
OPSET = 17
IR_VERSION = 8

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def tensor(name: str, element_type: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    helper.set_model_props(made, dict(metadata or {}))
    return made


def write(repository: Path, name: str, made: onnx.ModelProto, version: int = 1) -> Path:
    """Puts a model into a repository and returns its file."""
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(made, path)
    return path


def identity(element_type: int, shape: Shape = ("batch", 3)) -> onnx.ModelProto:
    """x -> y, the same."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], [tensor("x", element_type, shape)], [tensor("y", element_type, shape)])


CLASSES = ("low", "middle", "high")
CLASSIFIER_WEIGHTS = np.linspace(-0.01, 0.01, 48, dtype=np.float32).reshape(16, 3)


def classifier(metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """image uint8 [batch, 4, 4, 1] -> probabilities [batch, 3], with labels: the reference model's shape, in small."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return model(
        nodes,
        [tensor("image", TensorProto.UINT8, ("batch", 4, 4, 1))],
        [tensor("probabilities", TensorProto.FLOAT, ("batch", 3))],
        [onnx.numpy_helper.from_array(CLASSIFIER_WEIGHTS, "weights")],
        {"inferd.labels": json.dumps({"probabilities": CLASSES})} if metadata is None else metadata,
    )


def classify(images: np.ndarray) -> np.ndarray:
    """What `classifier` answers, in numpy."""
    logits = images.reshape(len(images), -1).astype(np.float32) @ CLASSIFIER_WEIGHTS
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sum_and_difference() -> onnx.ModelProto:
    """a, b float [batch, 4] -> sum, difference."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    tensors = {name: tensor(name, TensorProto.FLOAT, ("batch", 4)) for name in ("a", "b", "sum", "difference")}
    return model(nodes, [tensors["a"], tensors["b"]], [tensors["sum"], tensors["difference"]])


def simple() -> onnx.ModelProto:
    """INPUT0, INPUT1 int32 [batch, 16] -> OUTPUT0, their sum, and OUTPUT1, their difference: Triton's example model."""
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    tensors = [tensor(name, TensorProto.INT32, ("batch", 16)) for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")]
    return model(nodes, tensors[:2], tensors[2:])


def simple_identity() -> onnx.ModelProto:
    """INPUT0 string [batch, length] -> OUTPUT0, the same: another of Triton's example models."""
    node = helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])
    shape = ("batch", "length")
    return model([node], [tensor("INPUT0", TensorProto.STRING, shape)], [tensor("OUTPUT0", TensorProto.STRING, shape)])


def ragged() -> onnx.ModelProto:
    """x float [batch, length] -> total [batch]: rows of one request may be longer than those of another."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    node = helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0)
    x, total = tensor("x", TensorProto.FLOAT, ("batch", "length")), tensor("total", TensorProto.FLOAT, ("batch",))
    return model([node], [x], [total], [axes])


def batch_mean() -> onnx.ModelProto:
    """x float [batch, 2] -> centred [batch, 2], less the mean over the batch: looks batchable, and is not."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
    ]
    shape = ("batch", 2)
    return model(nodes, [tensor("x", TensorProto.FLOAT, shape)], [tensor("centred", TensorProto.FLOAT, shape)])


def fixed_batch() -> onnx.ModelProto:
    """x float [1, 3] -> y: exported without a dynamic batch."""
    return identity(TensorProto.FLOAT, (1, 3))


def embedding(vocabulary: int = 10, width: int = 2) -> onnx.ModelProto:
    """ids int64 [batch, 3] -> vectors [batch, 3, width]; an id outside of the vocabulary makes the run fail."""
    table = np.arange(vocabulary * width, dtype=np.float32).reshape(vocabulary, width)
    node = helper.make_node("Gather", ["table", "ids"], ["vectors"], axis=0)
    return model(
        [node],
        [tensor("ids", TensorProto.INT64, ("batch", 3))],
        [tensor("vectors", TensorProto.FLOAT, ("batch", 3, width))],
        [onnx.numpy_helper.from_array(table, "table")],
    )


def slow(multiplications: int = 40, size: int = 256) -> onnx.ModelProto:
    """x float [batch, size] -> y: a run that takes long enough to be met in the middle, the longer the more rows."""
    weights = np.eye(size, dtype=np.float32)
    names = [f"h{number}" for number in range(multiplications - 1)]
    nodes = [
        helper.make_node("MatMul", [source, "weights"], [target])
        for source, target in zip(["x", *names], [*names, "y"], strict=True)
    ]
    shape = ("batch", size)
    return model(
        nodes,
        [tensor("x", TensorProto.FLOAT, shape)],
        [tensor("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )


def constant(value: float, weights: int = 0) -> onnx.ModelProto:
    """x float [batch, 3] -> y [batch, 1], `value` whatever the row; carries about that many weights beside."""
    side = max(1, int(weights**0.5))
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zeros"], ["row"]),
        helper.make_node("MatMul", ["row", "weights"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axis"], ["nothing"], keepdims=1),
        helper.make_node("Add", ["nothing", "value"], ["y"]),
    ]
    arrays = {
        "axis": np.array([1], np.int64),
        "zeros": np.zeros((1, side), np.float32),
        "weights": np.random.default_rng(1).random((side, side), np.float32),
        "value": np.array(value, np.float32),
    }
    x, y = tensor("x", TensorProto.FLOAT, ("batch", 3)), tensor("y", TensorProto.FLOAT, ("batch", 1))
    return model(nodes, [x], [y], [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()])
