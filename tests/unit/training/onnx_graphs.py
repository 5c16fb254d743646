"""ONNX models from a few lines of text, and what they answer."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from inferd_training.optimise.graph.editor import Editor
from numpy.typing import NDArray
from onnx import numpy_helper

Arrays = Mapping[str, NDArray[Any]]


def parse(text: str, *, opset: int = 17, ir: int = 8, **constants: Any) -> onnx.ModelProto:
    """A model in ONNX's textual syntax, with initialisers; float64 arrays and Python numbers become float32."""
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> {text}')
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{number}"
    return proto


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def run(proto: onnx.ModelProto, feed: Arrays) -> list[Any]:
    """The answers without any of the runtime's optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def rows(proto: onnx.ModelProto, count: int, seed: int = 7) -> dict[str, NDArray[Any]]:
    """Random inputs: bytes of all values, other integers below 5; a free axis gets 5."""
    generator = np.random.default_rng(seed)
    drawn = {}
    for end in proto.graph.input:
        tensor = end.type.tensor_type
        shape = [count, *(dim.dim_value or 5 for dim in list(tensor.shape.dim)[1:])]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        most = 256 if dtype == np.uint8 else 5
        values = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, most, shape)
        drawn[end.name] = values.astype(dtype)
    return drawn


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The same ends, and the same answers but for roundoff, whatever the number of rows."""
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    onnx.checker.check_model(after, full_check=True)
    for count in (1, 2, 5):
        feed = rows(before, count)
        for old, new in zip(run(before, feed), run(after, feed), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
            np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5 * np.abs(old).max(initial=0))


def normal(*shape: int, seed: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def edited(change: Callable[[Editor], tuple[int, list[str]]], proto: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    """How often a change was made to a model, which it must say in a note, and the changed model, which is valid."""
    editor = Editor(proto)
    count, notes = change(editor)
    assert bool(count) == bool(notes)
    made = editor.built()
    onnx.checker.check_model(made, full_check=True)
    return count, made
