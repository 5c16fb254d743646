"""Transposes and reshapes: left out, joined, or left alone."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.layout import straighten
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import assert_same, normal, operators, parse


def straightened(proto: onnx.ModelProto) -> onnx.ModelProto:
    editor = Editor(proto)
    straighten(editor)
    after = editor.built()
    assert_same(proto, after)
    return after


def test_there_and_back() -> None:
    proto = parse(
        """g (float[batch, 2, 3, 4] x) => (float[batch, 2, 3, 4] y) {
            a = Transpose<perm = [0, 2, 3, 1]>(x)  b = Transpose<perm = [0, 3, 1, 2]>(a)  y = Relu(b)
        }"""
    )
    assert operators(straightened(proto)) == ["Relu"]


def test_two_that_are_one() -> None:
    proto = parse(
        """g (float[batch, 2, 3, 4] x) => (float[batch, 3, 2, 4] y) {
            a = Transpose<perm = [0, 2, 3, 1]>(x)  y = Transpose<perm = [0, 1, 3, 2]>(a)
        }"""
    )
    assert operators(straightened(proto)) == ["Transpose"]


def test_a_transposed_tensor_that_others_use_stays() -> None:
    proto = parse(
        """g (float[batch, 2, 3, 4] x) => (float[batch, 2, 3, 4] y, float[batch, 3, 4, 2] a) {
            a = Transpose<perm = [0, 2, 3, 1]>(x)  y = Transpose<perm = [0, 3, 1, 2]>(a)
        }"""
    )
    assert operators(straightened(proto)) == ["Transpose", "Transpose"]


def test_axes_of_one_element_need_no_transpose() -> None:
    """And the reshapes that are left are one."""
    proto = parse(
        """g (float[batch, 4, 4, 1] x) => (float[batch, 16] y) {
            a = Transpose<perm = [0, 3, 1, 2]>(x)  b = Transpose<perm = [0, 2, 1, 3]>(a)
            c = Flatten(b)  d = Unsqueeze(c, one)  y = Squeeze(d, one)
        }""",
        one=np.array([1]),
    )
    after = straightened(proto)
    assert operators(after) == ["Reshape"]
    (shape,) = after.graph.initializer
    assert onnx.numpy_helper.to_array(shape).tolist() == [-1, 16]


def test_the_batch_may_be_the_axis_that_moves_past_nothing() -> None:
    proto = parse("g (float[1, batch, 3] x) => (float[batch, 1, 3] y) { y = Transpose<perm = [1, 0, 2]>(x) }")
    editor = Editor(proto)
    straighten(editor)
    assert operators(editor.built()) == ["Reshape"]


def test_a_real_transpose_stays() -> None:
    proto = parse("g (float[batch, 2, 3] x) => (float[batch, 3, 2] y) { y = Transpose<perm = [0, 2, 1]>(x) }")
    assert operators(straightened(proto)) == ["Transpose"]
    swapped = parse("g (float[batch, time, 3] x) => (float[time, batch, 3] y) { y = Transpose<perm = [1, 0, 2]>(x) }")
    editor = Editor(swapped)
    assert straighten(editor) == (0, [])


def test_a_computed_shape_is_written_down() -> None:
    proto = parse(
        """g (float[batch, 4, 6] x) => (float[batch, 4, 2, 3] y) {
            s = Shape(x)  b = Gather<axis = 0>(s, zero)  t = Concat<axis = 0>(b, rest)  y = Reshape(x, t)
        }""",
        zero=np.array([0]),
        rest=np.array([4, 2, 3]),
    )
    assert operators(straightened(proto)) == ["Reshape"]


def test_a_shape_of_two_free_axes() -> None:
    """The heads of an attention: batch and time stay where they are."""
    proto = parse(
        """g (float[batch, time, 6] x) => (float[batch, time, 2, 3] y) {
            s = Shape(x)  b = Slice(s, zero, two)  t = Concat<axis = 0>(b, rest)  y = Reshape(x, t)
        }""",
        zero=np.array([0]),
        two=np.array([2]),
        rest=np.array([2, 3]),
    )
    after = straightened(proto)
    assert operators(after) == ["Reshape"]
    assert onnx.numpy_helper.to_array(after.graph.initializer[0]).tolist() == [0, 0, 2, 3]


def test_a_shape_that_depends_on_values_stays() -> None:
    proto = parse("g (float[batch, 6] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }")
    editor = Editor(proto)
    assert straighten(editor) == (0, [])


def test_a_reshape_to_the_same_shape_goes() -> None:
    proto = parse(
        "g (float[batch, 6] x) => (float[batch, 6] y) { a = Reshape(x, s)  y = Relu(a) }", s=np.array([-1, 6])
    )
    assert operators(straightened(proto)) == ["Relu"]


def test_names_at_both_ends_keep_a_node_between_them() -> None:
    proto = parse("g (float[batch, 6] x) => (float[batch, 6] y) { y = Reshape(x, s) }", s=np.array([-1, 6]))
    assert operators(straightened(proto)) == ["Reshape"]


@pytest.mark.parametrize("product", ["y = MatMul(f, w)", "y = Gemm(f, w)", "y = Gemm<transB = 1>(f, v)"])
def test_weights_are_transposed_in_place_of_rows(product: str) -> None:
    proto = parse(
        f"""g (float[batch, 2, 3, 4] x) => (float[batch, 5] y) {{
            r = Relu(x)  a = Transpose<perm = [0, 2, 3, 1]>(r)  f = Flatten(a)  {product}
        }}""",
        w=normal(24, 5),
        v=normal(5, 24),
    )
    assert operators(straightened(proto)) == ["Relu", "Reshape", product.split()[2].split("(")[0].split("<")[0]]


def test_rows_that_are_mixed_are_not_rows() -> None:
    """The batch ends up elsewhere: what is multiplied is made of several rows."""
    proto = parse(
        """g (float[batch, 2, 3] x) => (float[rows, 5] y) {
            a = Transpose<perm = [1, 0, 2]>(x)  f = Reshape(a, s)  y = MatMul(f, w)
        }""",
        s=np.array([-1, 6]),
        w=normal(6, 5),
    )
    editor = Editor(proto)
    assert straighten(editor) == (0, [])


def test_a_body_keeps_what_it_sees_of_the_graph_around() -> None:
    proto = parse(
        """g (float[batch, 1, 4] x) => (float[batch, 4, 1] y) {
            a = Transpose<perm = [0, 2, 1]>(x)
            b = Transpose<perm = [0, 2, 1]>(a)
            c = Reshape(b, s)
            total = ReduceSum<keepdims = 0>(c)
            test = Greater(total, nothing)
            y = If (test) <
                then_branch = yes () => (float[batch, 4, 1] u) { u = Neg(a) },
                else_branch = no () => (float[batch, 4, 1] v) { k = Mul(nothing, total)  v = Add(a, k) }
            >
        }""",
        s=np.array([-1, 4]),
        nothing=0.0,
    )
    assert "If" in operators(straightened(proto))


def test_a_transpose_goes_before_the_reshape_that_merges() -> None:
    """The heads of an attention, as their keys are laid out for a product."""
    proto = parse(
        """g (float[batch, 5, 4, 8] x) => (float[rows, 8, 5] y) {
            a = Unsqueeze(x, one)  b = Transpose<perm = [0, 3, 1, 2, 4]>(a)
            c = Reshape(b, s)  y = Transpose<perm = [0, 2, 1]>(c)
        }""",
        one=np.array([1]),
        s=np.array([-1, 5, 8]),
    )
    assert operators(straightened(proto)) == ["Transpose", "Reshape"]


def test_a_transpose_stays_behind_the_reshape_that_splits() -> None:
    proto = parse(
        """g (float[batch, 5, 32] x) => (float[batch, 4, 5, 8] y)
            { a = Reshape(x, s)  y = Transpose<perm = [0, 2, 1, 3]>(a) }""",
        s=np.array([-1, 5, 4, 8]),
    )
    assert operators(straightened(proto)) == ["Reshape", "Transpose"]


MOVES = st.lists(st.tuples(st.sampled_from(("Transpose", "Reshape", "Computed", "Unsqueeze")), st.integers(0, 999)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MOVES)
def test_random_moves(moves: list[tuple[str, int]]) -> None:
    """Of [batch, 2, 3, 4] in all ways, the batch to any place, and at the end back to one row each, or not."""
    nodes, constants = [], dict[str, np.ndarray]()
    sizes = {"batch": 7, "2": 2, "3": 3, "4": 4, "1": 1}
    shape = ["batch", "2", "3", "4"]
    for number, (kind, seed) in enumerate(moves):
        generator = np.random.default_rng(seed)
        before, after, constant = f"t{number}", f"t{number + 1}", f"c{number}"
        if kind == "Transpose":
            order = [int(axis) for axis in generator.permutation(len(shape))]
            nodes.append(helper.make_node("Transpose", [before], [after], perm=order))
            shape = [shape[axis] for axis in order]
        elif kind == "Unsqueeze" and len(shape) < 7:
            axis = int(generator.integers(len(shape) + 1))
            constants[constant] = np.array([axis])
            nodes.append(helper.make_node("Unsqueeze", [before, constant], [after]))
            shape.insert(axis, "1")
        else:
            # Two neighbours in one and that apart again, or an axis of one element more.
            place = int(generator.integers(len(shape)))
            merged = [*shape[:place], "*".join(shape[place : place + 2]), *shape[place + 2 :]]
            target = merged if len(shape) > 1 and generator.integers(2) else [*shape, "1"]
            numbers = [int(np.prod([sizes[part] for part in name.split("*")])) for name in target]
            free = next(i for i, name in enumerate(target) if "batch" in name)
            numbers[free] = -1
            constants[constant] = np.array(numbers)
            if kind == "Computed":
                # A shape out of the input's own, as exports have them.
                nodes.append(helper.make_node("Shape", ["t0"], [f"s{number}"]))
                nodes.append(helper.make_node("Gather", [f"s{number}", "first"], [f"b{number}"]))
                factor = int(np.prod([sizes[part] for part in target[free].split("*")])) // sizes["batch"]
                constants[f"f{number}"] = np.array([factor])
                nodes.append(helper.make_node("Mul", [f"b{number}", f"f{number}"], [f"m{number}"]))
                pieces = [f"m{number}" if i == free else f"p{number}_{i}" for i in range(len(target))]
                constants |= {f"p{number}_{i}": np.array([n]) for i, n in enumerate(numbers) if i != free}
                nodes.append(helper.make_node("Concat", pieces, [f"k{number}"], axis=0))
                constant = f"k{number}"
            nodes.append(helper.make_node("Reshape", [before, constant], [after]))
            shape = target
            sizes |= {name: int(np.prod([sizes[part] for part in name.split("*")])) for name in target}
    nodes.append(helper.make_node("Relu", [f"t{len(moves)}"], ["y"]))
    constants["first"] = np.array([0])
    graph = helper.make_graph(
        nodes,
        "moves",
        [helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["batch", 2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    after = straightened(proto)
    assert not {"Shape", "Concat"} & set(operators(after))
    assert len(after.graph.node) <= len(proto.graph.node)
