"""Largest values along a first axis, in two steps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from inferd_training.optimise.graph.maxima import split_maxima
from onnx_graphs import edited, operators, parse, run

TEXT = """
g (float[128, batch, 3] x) => (float[batch, 3] y) {
    y = ReduceMax<axes = [0], keepdims = 0>(x)
}
"""


def model(text: str = TEXT, opset: int = 17) -> onnx.ModelProto:
    if opset < 18:
        return parse(text, opset=opset)
    return parse(text.replace("axes = [0], ", "").replace("(x)\n", "(x, axes)\n"), opset=opset, axes=np.array([0]))


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
def test_it_is_the_same_to_the_bit(operator: str, opset: int) -> None:
    proto = model(TEXT.replace("ReduceMax", operator), opset)
    count, made = edited(split_maxima, proto)
    assert (count, operators(made)) == (1, ["Reshape", operator, operator])
    for rows in (1, 5):
        values = np.random.default_rng(rows).normal(size=(128, rows, 3)).astype(np.float32)
        before, after = (run(each, {"x": values})[0] for each in (proto, made))
        assert np.array_equal(before, after)
    # What is done once is done.
    assert edited(split_maxima, made)[0] == 0


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("128", "8"),
        TEXT.replace("128", "127"),
        TEXT.replace("128", "time"),
        TEXT.replace("ReduceMax", "ReduceMean"),
        TEXT.replace("keepdims = 0", "keepdims = 1").replace("(float[batch, 3] y)", "(float[1, batch, 3] y)"),
        TEXT.replace("axes = [0]", "axes = [1]").replace("(float[batch, 3] y)", "(float[128, 3] y)"),
        TEXT.replace("128, batch, 3", "128, batch, other").replace("batch, 3] y", "batch, other] y"),
    ],
)
def test_anything_else_stays(text: str) -> None:
    assert edited(split_maxima, model(text))[0] == 0
