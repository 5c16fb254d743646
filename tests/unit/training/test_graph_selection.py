"""Masked selections, as the converter writes them, become one node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.selection import join_selections
from numpy.typing import NDArray
from onnx import numpy_helper, parser

SELECT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, 2, 6] x, bool[batch, 1, 6] keep) => (float[batch, 2, 6] y) {
    shape = Shape(x)
    ones = Expand(yes, shape)
    mask = And(ones, keep)
    other = Not(mask)
    kept = Cast<to = 1>(mask)
    rest = Cast<to = 1>(other)
    a = Mul(kept, x)
    b = Mul(value, rest)
    y = Add(a, b)
}
"""


def parsed(text: str, **constants: NDArray[Any] | float) -> onnx.ModelProto:
    proto: onnx.ModelProto = parser.parse_model(text)
    for name, value in constants.items():
        array = np.asarray(value, np.float32) if not isinstance(value, np.ndarray) else value
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def run(proto: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, dict(inputs))
    return np.asarray(answer)


def joined(proto: onnx.ModelProto) -> onnx.ModelProto:
    editor = Editor(proto)
    count, notes = join_selections(editor)
    assert count == len(notes) == 1
    made = editor.built()
    onnx.checker.check_model(made, full_check=True)
    return made


@pytest.mark.parametrize(("value", "expected"), [(-2.0, ["Where"]), (-2.37e38, ["Where", "Add"])])
def test_a_selection_by_a_mask(value: float, expected: list[str]) -> None:
    proto = parsed(SELECT, value=np.float32(value), yes=np.array(True))
    made = joined(proto)
    assert kinds(made) == expected
    random = np.random.default_rng(2)
    inputs = {"x": random.normal(0, 50, (3, 2, 6)).astype(np.float32), "keep": random.random((3, 1, 6)) < 0.5}
    assert np.array_equal(run(made, inputs), run(proto, inputs))
    (where,) = [node for node in made.graph.node if node.op_type == "Where"]
    assert where.input[0] == "keep", "the mask is not widened first"


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("other = Not(mask)", "other = Not(keep)"),
        ("kept = Cast<to = 1>(mask)", "kept = Cast<to = 1>(other)"),
        ("b = Mul(value, rest)", "b = Mul(x, rest)"),
    ],
)
def test_a_sum_that_is_no_selection_stays(change: str, to: str) -> None:
    proto = parsed(SELECT.replace(change, to), value=np.float32(-2), yes=np.array(True))
    assert join_selections(Editor(proto)) == (0, [])
