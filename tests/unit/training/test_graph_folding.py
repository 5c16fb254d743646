"""Scales, offsets and batch normalisations in the weights: where they may go there, and where they must not."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.folding import fold_before, fold_behind
from onnx_graphs import assert_same, normal, operators, parse

Fold = Callable[[Editor], tuple[int, list[str]]]

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def changed(proto: onnx.ModelProto, *folds: Fold) -> tuple[onnx.ModelProto, list[str]]:
    """The model after the folds, which answers as it did, and their notes."""
    original = proto.SerializeToString()
    editor = Editor(proto)
    notes = [note for fold in folds for note in fold(editor)[1]]
    after = editor.built()
    assert proto.SerializeToString() == original
    assert_same(proto, after)
    return after, notes


def picture(nodes: str, result: str, **constants: object) -> onnx.ModelProto:
    return parse(
        f"g (uint8[batch, 8, 8, 3] image) => (float[{result}] y) {{ x = Cast<to = 1>(image) {nodes} }}", **constants
    )


def test_preprocessing_goes_into_a_convolution() -> None:
    proto = picture(
        """
        a = Mul(x, s)  b = Sub(a, m)  c = Div(b, d)
        t = Transpose<perm = [0, 3, 1, 2]>(c)
        y = Conv<kernel_shape = [3, 3]>(t, w, bias)
        """,
        "batch, 4, 6, 6",
        s=1 / 255,
        m=MEAN,
        d=DEVIATION,
        w=normal(4, 3, 3, 3),
        bias=normal(4),
    )
    after, notes = changed(proto, fold_before)
    assert operators(after) == ["Cast", "Transpose", "Conv"]
    assert {tensor.name for tensor in after.graph.initializer} == {"w__1", "bias__1"}
    assert notes == ["folded Mul 'mul_1' and Sub 'sub_2' and Div 'div_3' into the weights of Conv 'conv_5'"]


def test_zeros_around_a_picture_are_not_shifted() -> None:
    """What is left of scale, offset, scale is one Add."""
    proto = picture(
        """
        a = Mul(x, s)  b = Sub(a, m)  c = Div(b, d)
        t = Transpose<perm = [0, 3, 1, 2]>(c)
        y = Conv<kernel_shape = [3, 3], auto_pad = "SAME_UPPER">(t, w)
        """,
        "batch, 4, 8, 8",
        s=1 / 255,
        m=MEAN,
        d=DEVIATION,
        w=normal(4, 3, 3, 3),
    )
    after, notes = changed(proto, fold_before)
    assert operators(after) == ["Cast", "Add", "Transpose", "Conv"]
    assert "folded the scale of" in notes[0]
    assert "zeros around" in notes[0]


def test_an_offset_alone_before_a_padded_convolution_stays() -> None:
    proto = picture(
        """
        a = Sub(x, m) t = Transpose<perm = [0, 3, 1, 2]>(a)
        y = Conv<kernel_shape = [3, 3], pads = [1, 0, 0, 0]>(t, w)
        """,
        "batch, 4, 7, 6",
        m=127.5,
        w=normal(4, 3, 3, 3),
    )
    after, notes = changed(proto, fold_before)
    assert operators(after) == operators(proto)
    assert notes == ["Sub 'sub_1' before Conv 'conv_3' stays: the zeros around its input are not shifted"]


def test_a_kernel_of_one_element_is_never_padded() -> None:
    proto = picture(
        """
        a = Sub(x, m) t = Transpose<perm = [0, 3, 1, 2]>(a)
        y = Conv<kernel_shape = [1, 1], auto_pad = "SAME_LOWER", strides = [2, 2]>(t, w)
        """,
        "batch, 4, 4, 4",
        m=127.5,
        w=normal(4, 3, 1, 1),
    )
    assert operators(changed(proto, fold_before)[0]) == ["Cast", "Transpose", "Conv"]


def test_groups_take_their_own_channels_scales() -> None:
    proto = parse(
        """g (float[batch, 6, 5, 5] x) => (float[batch, 4, 3, 3] y) {
            a = Mul(s, x)  b = Add(o, a)
            c = Conv<kernel_shape = [3, 3], group = 2>(b, w)
            d = Mul(c, t)  y = BatchNormalization(d, gamma, beta, mean, variance)
        }""",
        s=normal(6, 1, 1),
        o=normal(1, 6, 1, 1, seed=4),
        w=normal(4, 3, 3, 3),
        t=normal(4, 1, 1, seed=5),
        gamma=normal(4, seed=6),
        beta=normal(4, seed=7),
        mean=normal(4, seed=8),
        variance=np.abs(normal(4, seed=9)),
    )
    after, _ = changed(proto, fold_behind, fold_before)
    assert operators(after) == ["Conv"]


def test_a_row_is_scaled_element_by_element_before_it_is_flattened() -> None:
    proto = picture(
        """
        a = Div(x, d)  b = Sub(a, m)
        t = Transpose<perm = [0, 3, 1, 2]>(b)  f = Flatten(t)
        p = MatMul(f, w)  y = Add(p, bias)
        """,
        "batch, 4",
        d=np.abs(normal(8, 8, 3)) + 40,
        m=normal(8, 1, 3),
        w=normal(192, 4),
        bias=normal(4),
    )
    assert operators(changed(proto, fold_before)[0]) == ["Cast", "Transpose", "Flatten", "MatMul", "Add"]


def test_a_product_without_a_bias_becomes_a_gemm() -> None:
    proto = parse(
        "g (float[batch, 3] x) => (float[batch, 4] y) { a = Sub(o, x)  y = MatMul(a, w) }", o=normal(3), w=normal(3, 4)
    )
    assert operators(changed(proto, fold_before)[0]) == ["Gemm"]


@pytest.mark.parametrize("bias", [None, normal(4), normal(1, 4), np.float32(2), normal(1)])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemms_factors_count(bias: np.ndarray | None, transposed: int) -> None:
    given = {} if bias is None else {"bias": bias}
    proto = parse(
        f"""g (float[batch, 3] x) => (float[batch, 4] y) {{
            a = Mul(x, s)  b = Add(a, o)
            c = Gemm<alpha = 0.5, beta = 3.0, transB = {transposed}>(b, w{"".join(", " + name for name in given)})
            d = Neg(c)  y = Add(d, o)
        }}""".replace("y = Add(d, o)", "y = Add(d, p)"),
        s=normal(3),
        o=normal(3, seed=4),
        p=normal(4, seed=5),
        w=normal(4, 3) if transposed else normal(3, 4),
        **given,
    )
    assert operators(changed(proto, fold_behind, fold_before)[0]) == ["Gemm"]


def test_a_batch_of_sequences() -> None:
    """A MatMul of three axes has no bias but that of the Add behind it."""
    proto = parse(
        """g (float[batch, time, 3] x) => (float[batch, time, 4] y, float[batch, time, 4] z) {
            a = Mul(x, s)  b = Add(a, o)  c = MatMul(b, w)  d = Add(bias, c)  e = Mul(d, t)  y = Sub(e, o4)
            f = Sub(x, o)  z = MatMul(f, w)
        }""",
        s=normal(3),
        o=normal(3, seed=4),
        o4=normal(4, seed=5),
        w=normal(3, 4),
        bias=normal(4),
        t=normal(1, 1, 4, seed=6),
    )
    after, notes = changed(proto, fold_behind, fold_before)
    assert operators(after) == ["MatMul", "Add", "Sub", "MatMul"]
    assert notes[-1] == "Sub 'sub_6' before MatMul 'matmul_7' stays: it has no bias"


def test_moves_between_a_result_and_its_scale() -> None:
    proto = parse(
        """g (float[batch, 3, 5, 5] x) => (float[batch, 3, 3, 2, 2] y) {
            c = Conv<kernel_shape = [3, 3]>(x, w)
            t = Transpose<perm = [0, 2, 3, 1]>(c)
            r = Reshape(t, shape)
            a = Mul(r, s)  y = Add(a, o)
        }""",
        w=normal(4, 3, 3, 3),
        shape=np.array([-1, 3, 3, 2, 2]),
        s=normal(2, 2),
        o=normal(1, 1, 1, 2, 2, seed=4),
    )
    assert operators(changed(proto, fold_behind)[0]) == ["Conv", "Transpose", "Reshape"]


def test_what_lies_along_another_axis_than_the_channels_stays() -> None:
    """Four channels, four columns: a constant of four elements lies along the columns."""
    proto = parse(
        "g (float[batch, 3, 4, 4] x) => (float[batch, 4, 4, 4] y) "
        "{ a = Mul(x, s)  c = Conv<kernel_shape = [1, 1]>(a, w)  y = Mul(c, s) }",
        s=normal(4),
        w=normal(4, 3, 1, 1),
    )
    assert operators(changed(proto, fold_behind, fold_before)[0]) == ["Mul", "Conv", "Mul"]


def test_a_constant_larger_than_what_it_scales_stays() -> None:
    proto = parse(
        """g (float[batch, 1, 4, 1] x) => (float[batch, 4, 4, 1] y)
            { a = Mul(x, s)  y = Conv<kernel_shape = [1, 1]>(a, w) }""",
        s=normal(4, 1, 1),
        w=normal(4, 4, 1, 1),
    )
    assert operators(changed(proto, fold_before)[0]) == ["Mul", "Conv"]


def test_weights_that_two_nodes_have_are_scaled_for_one() -> None:
    proto = parse(
        """g (float[batch, 3, 5, 5] x) => (float[batch, 3, 3, 3] y, float[batch, 3, 3, 3] z) {
            a = Mul(x, s)  y = Conv<kernel_shape = [3, 3]>(a, w, b)
            c = Conv<kernel_shape = [3, 3]>(x, w, b)  z = Mul(c, t)
        }""",
        s=4.0,
        t=np.array(0.5),
        w=normal(3, 3, 3, 3),
        b=normal(3),
    )
    after, _ = changed(proto, fold_behind, fold_before)
    assert operators(after) == ["Conv", "Conv"]
    assert len(after.graph.initializer) == 4


@pytest.mark.parametrize("other", ["z = Relu(a)", "z = Identity(a)"])
def test_what_others_use_too_stays(other: str) -> None:
    proto = parse(
        f"""g (float[batch, 3] x) => (float[batch, 2] y, float[batch, 3] z)
            {{ a = Mul(x, s)  y = MatMul(a, w)  {other} }}""",
        s=3.0,
        w=normal(3, 2),
    )
    after, notes = changed(proto, fold_behind, fold_before)
    assert operators(after) == operators(proto)
    assert notes == ["Mul 'mul_0' before MatMul 'matmul_1' stays: other nodes use its result too"]


def test_outputs_keep_their_values() -> None:
    """The product and the scaled input are answers themselves."""
    proto = parse(
        """g (float[batch, 3] x) => (float[batch, 3] a, float[batch, 2] p, float[batch, 2] y)
            { a = Mul(x, s)  p = MatMul(a, w)  y = Mul(p, s) }""",
        s=3.0,
        w=normal(3, 2),
    )
    assert operators(changed(proto, fold_behind, fold_before)[0]) == ["Mul", "MatMul", "Mul"]


@pytest.mark.parametrize(("nodes", "extents"), [("y = Sub(x, far)", "batch, 2"), ("y = Mul(x, s)", "batch, 2")])
def test_an_output_keeps_its_name(nodes: str, extents: str) -> None:
    proto = parse(
        f"g (float[batch, 3] i) => (float[{extents}] y) {{ x = MatMul(i, w) {nodes} }}", far=3.0, s=2.0, w=normal(3, 2)
    )
    assert operators(changed(proto, fold_behind)[0]) in (["MatMul"], ["Gemm"])


def test_digits_that_an_offset_keeps_are_kept() -> None:
    """Seconds since 1970: x - offset is exact, and both times a weight are not."""
    proto = parse(
        "g (float[batch, 3] x) => (float[batch, 2] y) { a = Sub(x, o)  y = Gemm(a, w) }", o=1.7e9, w=normal(3, 2)
    )
    after, notes = changed(proto, fold_before)
    assert operators(after) == ["Sub", "Gemm"]
    assert "digits would be lost" in notes[0]
    bytes_ = picture("a = Sub(x, o) f = Flatten(a) y = MatMul(f, w)", "batch, 2", o=127.5, w=normal(192, 2))
    assert operators(changed(bytes_, fold_before)[0]) == ["Cast", "Flatten", "Gemm"]


def test_weights_that_their_dtype_cannot_hold_scaled_stay() -> None:
    proto = parse(
        "g (float16[batch, 3] x) => (float16[batch, 2] y) { a = Mul(x, s)  y = MatMul(a, w) }",
        s=np.float16(1e-4),
        w=normal(3, 2).astype(np.float16) / np.float16(100),
    )
    after, notes = changed(proto, fold_before)
    assert operators(after) == ["Mul", "MatMul"]
    assert "cannot hold" in notes[0]


def test_division_by_zero_and_numbers_that_are_none_stay() -> None:
    for scale in (0.0, np.inf):
        proto = parse(
            "g (float[batch, 3] x) => (float[batch, 2] y) { p = MatMul(x, w)  y = Div(p, s) }", s=scale, w=normal(3, 2)
        )
        editor = Editor(proto)
        assert fold_behind(editor) == (0, [])
        assert operators(editor.built()) == ["MatMul", "Div"]


def test_integers_are_not_taken_for_floats() -> None:
    proto = parse(
        "g (int32[batch, 3] x) => (float[batch, 2] y) { a = Div(x, s)  f = Cast<to = 1>(a)  y = MatMul(f, w) }",
        s=np.int32(2),
        w=normal(3, 2),
    )
    assert operators(changed(proto, fold_before)[0]) == ["Div", "Cast", "MatMul"]


def test_a_layer_normalisation_keeps_its_scale_and_offset() -> None:
    """Runtimes run the whole of it as one node."""
    proto = parse(
        """g (float[batch, 6] x) => (float[batch, 2] y) {
            m = ReduceMean<axes = [1]>(x)  c = Sub(x, m)  q = Mul(c, c)  v = ReduceMean<axes = [1]>(q)  e = Add(v, tiny)
            r = Sqrt(e)  n = Div(c, r)  a = Mul(n, gamma)  b = Add(a, beta)  y = MatMul(b, w)
        }""",
        tiny=1e-3,
        gamma=normal(6),
        beta=normal(6, seed=4),
        w=normal(6, 2),
    )
    assert operators(changed(proto, fold_behind, fold_before)[0]) == operators(proto)


def test_weights_that_are_computed_stay() -> None:
    proto = parse(
        "g (float[batch, 3] x, float[batch, 3] k) => (float[batch, batch] y) "
        "{ a = Mul(x, s)  t = Transpose<perm = [1, 0]>(k)  p = MatMul(a, t)  y = Mul(p, s) }",
        s=2.0,
    )
    editor = Editor(proto)
    assert (fold_behind(editor), fold_before(editor)) == ((0, []), (0, []))


@pytest.mark.parametrize("opset", [7, 11, 13])
def test_older_opsets(opset: int) -> None:
    proto = parse(
        """g (float[batch, 3, 4, 4] x) => (float[batch, 4, 4, 4] y) {
            a = Mul(x, s)  c = Conv<kernel_shape = [1, 1]>(a, w)
            y = BatchNormalization<epsilon = 0.01>(c, gamma, beta, mean, variance)
        }""",
        opset=opset,
        s=normal(3, 1, 1),
        w=normal(4, 3, 1, 1),
        gamma=normal(4, seed=6),
        beta=normal(4, seed=7),
        mean=normal(4, seed=8),
        variance=np.abs(normal(4, seed=9)),
    )
    assert operators(changed(proto, fold_behind, fold_before)[0]) == ["Conv"]
