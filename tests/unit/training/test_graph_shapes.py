"""Shapes with the batch free, through the arithmetic that computes them."""

import numpy as np
import pytest
from inferd_training.optimise.graph.extents import Extent, extent, product
from inferd_training.optimise.graph.shapes import inferred
from onnx_graphs import parse


def test_extents_are_products() -> None:
    rows = Extent(4) * Extent(1, ("batch",))
    assert rows.named == "4*batch"
    assert extent("4*batch") == rows == extent("batch*4")
    assert (rows * Extent(1, ("a",))).named == "4*a*batch"
    assert rows.divided(Extent(2, ("batch",))) == Extent(2)
    assert rows.divided(Extent(3)) is None
    assert rows.divided(Extent(1, ("time",))) is None
    assert rows.divided(Extent(0)) is None
    assert product([rows, Extent(2)]) == Extent(8, ("batch",))
    assert product([rows, None]) is None
    assert (extent(None), extent("")) == (None, None)
    assert extent("time - 2*pad") == Extent(1, ("time - 2*pad",))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("s = Shape(x)  y = Reshape(x, s)", ("batch", 4, 6)),
        ("s = Shape<start = 0, end = 1>(x)  t = Concat<axis = 0>(s, minus)  y = Reshape(x, t)", ("batch", 24)),
        ("y = Reshape(x, rows)", ("4*batch", 6)),
        ("y = Reshape(x, keep)", ("batch", 4, 2, 3)),
        # Two axes in one, as a product of matrices has them, with and without a detour by int32.
        (
            """s = Shape(x)  i = Cast<to = 6>(s)  a = Gather(i, two)  p = ReduceProd<keepdims = 1>(a)
            r = Cast<to = 7>(p)  t = Concat<axis = 0>(r, minus)  y = Reshape(x, t)""",
            ("4*batch", 6),
        ),
        (
            """s = Shape(x)  a = Slice(s, zero, one)  b = Mul(a, three)  c = Max(b, b)
            t = Concat<axis = 0>(c, minus)  y = Reshape(x, t)""",
            ("3*batch", 8),
        ),
        # A scalar on the way.
        (
            """s = Shape(x)  a = Gather(s, first)  u = Unsqueeze(a, zero)  t = Concat<axis = 0>(minus, u)
            y = Reshape(x, t)""",
            (24, "batch"),
        ),
        ("s = Shape(x)  y = Expand(small, s)", ("batch", 4, 6)),
        ("s = Shape(x)  y = ConstantOfShape(s)", ("batch", 4, 6)),
        # What lies behind a computed shape is inferred on from it.
        ("r = Reshape(x, rows)  a = Relu(r)  b = MatMul(a, w)  y = Add(b, b)", ("4*batch", 5)),
    ],
)
def test_computed_shapes(nodes: str, expected: tuple[int | str, ...]) -> None:
    proto = parse(
        f"g (float[batch, 4, 6] x) => (float[{', '.join('?' for _ in expected)}] y) {{ {nodes} }}",
        minus=np.array([-1]),
        rows=np.array([-1, 6]),
        keep=np.array([0, 4, 2, -1]),
        two=np.array([0, 1]),
        zero=np.array([0]),
        one=np.array([1]),
        first=np.array(0),
        three=np.array([3]),
        small=np.ones((1, 1)),
        w=np.ones((6, 5)),
    )
    assert inferred(proto)[0]["y"] == expected


def test_a_shape_that_depends_on_values_is_not_known() -> None:
    proto = parse("g (float[batch, 4] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }")
    assert inferred(proto)[0]["y"] == ("a", "b")


def test_numbers_of_a_converter_are_believed_and_names_are_not() -> None:
    proto = parse(
        """g (float[batch, 4] x, int64[2] s) => (float[a, b] y)
            <float[same, 7] r, float[same, same] q> { r = Reshape(x, s)  q = Reshape(r, s)  y = Relu(q) }"""
    )
    shapes = inferred(proto)[0]
    assert shapes["r"][1] == 7
    assert len({shapes["r"][0], *shapes["q"]}) == 3
