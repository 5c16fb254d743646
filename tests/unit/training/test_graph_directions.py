"""Reductions over time of a recurrent layer that reads from both ends."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import pytest
from inferd_training.export.convert import convert
from inferd_training.optimise.graph.directions import reduce_first
from inferd_training.optimise.graph.simplify import simplify
from keras import layers
from onnx_graphs import edited, operators, parse, run

STEPS = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)

TEXT = """
g (float[6, batch, 3] x) => (float[batch, 4] y) {
    all = LSTM<hidden_size = 2, direction = "bidirectional">(x, W, R, B)
    back = Slice(all, one, end, one)
    front = Slice(all, zero, one, one)
    b = Squeeze(back, one)
    f = Squeeze(front, one)
    joined = Concat<axis = 2>(f, b)
    y = ReduceMax<axes = [0], keepdims = 0>(joined)
}
"""


def model(text: str = TEXT) -> onnx.ModelProto:
    drawn = np.random.default_rng(1)
    weights = {"W": (2, 8, 3), "R": (2, 8, 2), "B": (2, 16)}
    numbers = {"zero": [0], "one": [1], "end": [2**31 - 1]}
    return parse(
        text,
        **{name: drawn.normal(size=shape) for name, shape in weights.items()},
        **{name: np.array(value, np.int64) for name, value in numbers.items()},
    )


@pytest.mark.parametrize("reduction", ["ReduceMax", "ReduceMin", "ReduceMean"])
def test_one_step_is_joined_instead_of_all(reduction: str) -> None:
    proto = model(TEXT.replace("ReduceMax", reduction))
    count, made = edited(reduce_first, proto)
    assert (count, operators(made)) == (1, ["LSTM", reduction, "Transpose", "Reshape"])
    for rows in (1, 4):
        before, after = (run(each, {"x": STEPS[:, :rows]})[0] for each in (proto, made))
        assert after.shape == (rows, 4)
        assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Concat<axis = 2>(f, b)", "Concat<axis = 2>(b, f)"),
        ("Concat<axis = 2>(f, b)", "Concat<axis = 2>(f, f)"),
        ("Slice(all, one, end, one)", "Slice(all, one, end, one, step)"),
        ("axes = [0], keepdims = 0>(joined)", "axes = [0], keepdims = 0>(doubled)"),
    ],
)
def test_anything_else_stays(old: str, new: str) -> None:
    text = TEXT.replace(old, new)
    text = text.replace("y = Reduce", "doubled = Add(joined, joined)\n    y = Reduce") if "doubled" in new else text
    text = text.replace("back = Slice", "step = Neg(minus)\n    back = Slice") if "step" in new else text
    proto = model(text)
    if "step" in new:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1], np.int64), "minus"))
    assert edited(reduce_first, proto)[0] == 0


def test_steps_that_are_an_answer_too_are_still_given() -> None:
    proto = model()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("joined", onnx.TensorProto.FLOAT, [6, "batch", 4]))
    _, made = edited(reduce_first, proto)
    before, after = (run(each, {"x": STEPS}) for each in (proto, made))
    for one, other in zip(before, after, strict=True):
        assert other == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("pooling", [layers.GlobalMaxPooling1D, layers.GlobalAveragePooling1D])
def test_what_keras_writes(pooling: type[layers.Layer]) -> None:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    hidden = layers.Embedding(9, 4)(tokens)
    hidden = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(hidden)
    proto = convert(keras.Model(tokens, layers.Dense(2, name="y")(pooling()(hidden))), {})
    found = simplify(proto)
    assert any("directions" in note for note in found.notes)
    assert any("negative indices" in note for note in found.notes)
    assert operators(found.proto)[:3] == ["Transpose", "Gather", "LSTM"]
