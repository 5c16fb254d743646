"""Layer normalisations and recurrent layers, in the forms that converters write them."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.normalisation import fuse_normalisations
from inferd_training.optimise.graph.recurrent import tidy_recurrent
from onnx_graphs import assert_same, normal, operators, parse


def changed(proto: onnx.ModelProto, change: Callable[[Editor], tuple[int, list[str]]]) -> onnx.ModelProto:
    editor = Editor(proto)
    count, notes = change(editor)
    after = editor.built()
    assert (count > 0) == bool(notes)
    assert_same(proto, after)
    return after


CORE = "d = Sub(x, m)  q = Mul(d, d)  v = {mean}(q)  e = Add(v, tiny)  s = Sqrt(e)  r = Reciprocal(s)"


def normalisation(
    end: str, *, mean: str = "ReduceMean<axes = [-1]>", shape: str = "batch, 3, 6", opset: int = 17, outputs: str = ""
) -> onnx.ModelProto:
    return parse(
        f"g (float[{shape}] x) => (float[{shape}] y{outputs}) {{ m = {mean}(x)  {CORE.format(mean=mean)}  {end} }}",
        opset=opset,
        tiny=1e-3,
        gamma=normal(6),
        beta=normal(1, 6, seed=4),
        each=normal(3, 1, seed=5),
    )


AS_KERAS = "f = Mul(r, gamma)  p = Mul(x, f)  n = Neg(m)  k = Mul(n, f)  t = Add(k, beta)  y = Add(p, t)"


@pytest.mark.parametrize(
    "end",
    [
        AS_KERAS,
        "f = Mul(gamma, r)  p = Mul(f, x)  n = Neg(m)  k = Mul(f, n)  t = Add(beta, k)  y = Add(t, p)",
        "f = Mul(r, gamma)  p = Mul(x, f)  n = Neg(m)  k = Mul(n, f)  y = Add(p, k)",
        "p = Mul(x, r)  n = Neg(m)  k = Mul(n, r)  t = Add(k, beta)  y = Add(p, t)",
        "p = Mul(x, r)  n = Neg(m)  k = Mul(n, r)  y = Add(p, k)",
        "z = Mul(d, r)  a = Mul(z, gamma)  y = Add(a, beta)",
        "z = Mul(r, d)  y = Add(beta, z)",
        "y = Mul(d, r)",
    ],
)
@pytest.mark.parametrize("mean", ["ReduceMean<axes = [-1]>", "ReduceMean<axes = [2]>", "GlobalAveragePool"])
def test_forms_of_a_layer_normalisation(end: str, mean: str) -> None:
    assert operators(changed(normalisation(end, mean=mean), fuse_normalisations)) == ["LayerNormalization"]


def test_axes_as_an_input() -> None:
    proto = normalisation(AS_KERAS, mean="ReduceMean", opset=18)
    for node in proto.graph.node:
        if node.op_type == "ReduceMean":
            node.input.append("last")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    assert operators(changed(proto, fuse_normalisations)) == ["LayerNormalization"]


def test_what_is_asked_for_beside_it_stays() -> None:
    proto = normalisation(
        "z = Mul(d, r)  a = Mul(z, gamma)  y = Add(a, beta)", outputs=", float[batch, 3, 6] z, float[batch, 3, 1] m"
    )
    after = changed(proto, fuse_normalisations)
    assert operators(after).count("LayerNormalization") == 1
    assert operators(after)[-2:] == ["Mul", "Add"]


@pytest.mark.parametrize(
    ("end", "options"),
    [
        # Before LayerNormalization was an operator.
        (AS_KERAS, {"opset": 16}),
        # Over other axes than the last one, or more.
        (AS_KERAS, {"mean": "ReduceMean<axes = [1]>"}),
        (AS_KERAS, {"mean": "ReduceMean<axes = [1, 2]>"}),
        (AS_KERAS, {"mean": "GlobalAveragePool", "shape": "batch, 3, 2, 6"}),
        # Another mean is subtracted, another factor taken, or something added along another axis.
        ("p = Mul(x, r)  n = Neg(v)  k = Mul(n, r)  y = Add(p, k)", {}),
        ("f = Mul(r, gamma)  p = Mul(x, f)  n = Neg(m)  k = Mul(n, r)  y = Add(p, k)", {}),
        ("f = Mul(r, each)  p = Mul(x, f)  n = Neg(m)  k = Mul(n, f)  y = Add(p, k)", {}),
        ("p = Mul(q, r)  n = Neg(m)  k = Mul(n, r)  y = Add(p, k)", {}),
        ("p = Mul(x, r)  k = Mul(m, r)  y = Add(p, k)", {}),
    ],
)
def test_what_only_looks_like_one(end: str, options: dict[str, object]) -> None:
    proto = normalisation(end, **options)  # type: ignore[arg-type]
    assert "LayerNormalization" not in operators(changed(proto, fuse_normalisations))


def recurrent(
    text: str, *, kind: str = "LSTM", directions: int = 1, extra: str = "", shape: str = "batch, 4"
) -> onnx.ModelProto:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    return parse(
        f"""g (float[batch, 6, 3] steps{extra}) => (float[{shape}] y)
            {{ x = Transpose<perm = [1, 0, 2]>(steps) {text} }}""",
        w=normal(directions, gates * 4, 3),
        r=normal(directions, gates * 4, 4, seed=4),
        b=normal(directions, gates * 8, seed=5),
        zero=np.zeros((1, 1, 4)),
        nothing=0.0,
        half=0.5,
        i0=np.array([0]),
        i1=np.array([1]),
        i2=np.array([2]),
        i4=np.array([4]),
        minus=np.array([-1]),
        last=np.array([2**31 - 1]),
    )


ZEROS = """
    shape = Shape(x)  rows = Slice(shape, i1, i2)  size = Concat<axis = 0>(rows, i4)
    flat = Expand(nothing, size)  state = Unsqueeze(flat, i0)
"""


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_states_of_zeros_are_left_out(kind: str) -> None:
    states = "state, state" if kind == "LSTM" else "state"
    proto = recurrent(f"{ZEROS} a, h = {kind}<hidden_size = 4>(x, w, r, b, , {states})  y = Squeeze(h, i0)", kind=kind)
    after = changed(proto, tidy_recurrent)
    assert operators(after) == ["Transpose", kind, "Squeeze"]
    assert len(after.graph.node[1].input) == 4


@pytest.mark.parametrize(
    "zeros",
    [
        "size = Concat<axis = 0>(i1, rows, i4)  state = ConstantOfShape(size)",
        "size = Concat<axis = 0>(i1, rows, i4)  state = Expand(zero, size)",
        "size = Concat<axis = 0>(i1, rows, i1)  state = Tile(zero, size)",
    ],
)
def test_zeros_by_other_ways(zeros: str) -> None:
    proto = recurrent(
        f"""shape = Shape(x)  rows = Slice(shape, i1, i2)  {zeros}
        a, h = LSTM<hidden_size = 4>(x, w, r, b, , state, state)  y = Squeeze(h, i0)"""
    )
    assert operators(changed(proto, tidy_recurrent)) == ["Transpose", "LSTM", "Squeeze"]


def test_zeros_for_both_directions() -> None:
    proto = recurrent(
        f"""{ZEROS} both = Concat<axis = 0>(state, state)
        a, h = LSTM<hidden_size = 4, direction = "bidirectional">(x, w, r, b, , both, both)
        y = Transpose<perm = [1, 0, 2]>(h)""",
        directions=2,
        shape="batch, 2, 4",
    )
    assert operators(changed(proto, tidy_recurrent)) == ["Transpose", "LSTM", "Transpose"]


def test_other_states_stay() -> None:
    proto = recurrent(
        f"""{ZEROS.replace("nothing", "half")}
        a, h = LSTM<hidden_size = 4>(x, w, r, b, , state, state)  y = Squeeze(h, i0)"""
    )
    assert operators(changed(proto, tidy_recurrent)) == operators(proto)


def last_step(cut: str, *, options: str = "", lengths: str = "", extra: str = "") -> onnx.ModelProto:
    return recurrent(
        f"""a = LSTM<hidden_size = 4{options}>(x, w, r, b{lengths})  s = Squeeze(a, i1)
        {cut}  y = Squeeze(c, i0)""",
        extra=extra,
    )


def test_the_last_step_is_the_last_state() -> None:
    proto = last_step("c = Slice(s, minus, last, i0)")
    assert operators(changed(proto, tidy_recurrent)) == ["Transpose", "LSTM", "Squeeze"]


@pytest.mark.parametrize(
    "proto",
    [
        last_step("c = Slice(s, i0, i1, i0)"),
        last_step("c = Slice(s, minus, last, i0)", options=', direction = "reverse"'),
    ],
)
def test_other_steps_stay(proto: onnx.ModelProto) -> None:
    assert operators(changed(proto, tidy_recurrent)) == operators(proto)


def test_with_lengths_the_last_step_is_another() -> None:
    proto = last_step("c = Slice(s, minus, last, i0)", lengths=", n", extra=", int32[batch] n")
    editor = Editor(proto)
    assert tidy_recurrent(editor) == (0, [])
