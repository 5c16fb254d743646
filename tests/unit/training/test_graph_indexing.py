"""Gathers take negative indices and reordered ones as they are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from inferd_training.optimise.graph.indexing import trust_indices
from onnx_graphs import edited, operators, parse, run

TABLE = np.arange(15, dtype=np.float32).reshape(5, 3)
INDICES = np.array([[0, 4, -1, -5], [2, -3, 1, 3]], np.int32)

PRODUCTS = """
g (int32[batch, 4] x) => (float[batch, 4, 3] y) {
    added = Add(x, n)
    number = Cast<to = 1>(x)
    below = Less(number, zero)
    above = Not(below)
    one = Cast<to = 6>(below)
    other = Cast<to = 6>(above)
    a = Mul(one, added)
    b = Mul(x, other)
    index = Add(a, b)
    y = Gather(table, index)
}
"""
WHERE = """
g (int32[batch, 4] x) => (float[batch, 4, 3] y) {
    added = Add(n, x)
    below = Less(x, zero)
    index = Where(below, added, x)
    y = Gather(table, index)
}
"""


def model(text: str, *, rows: int = 5, zero: float = 0) -> onnx.ModelProto:
    kind = np.float32 if text is PRODUCTS else np.int32
    return parse(text, table=TABLE, n=np.int32(rows), zero=np.asarray(zero, kind))


@pytest.mark.parametrize("text", [PRODUCTS, WHERE])
def test_indices_from_the_end_are_counted_by_gather(text: str) -> None:
    proto = model(text)
    count, made = edited(trust_indices, proto)
    assert (count, operators(made)) == (1, ["Gather"])
    before, after = (run(each, {"x": INDICES})[0] for each in (proto, made))
    assert np.array_equal(before, after)
    assert np.array_equal(after, TABLE[INDICES])


@pytest.mark.parametrize("text", [PRODUCTS, WHERE])
@pytest.mark.parametrize("other", [{"rows": 4}, {"zero": 1}])
def test_another_selection_stays(text: str, other: dict[str, int]) -> None:
    assert edited(trust_indices, model(text, **other))[0] == 0


def test_a_selection_between_others_stays() -> None:
    # Where the index is negative nothing is added to it, but to another one.
    swapped = WHERE.replace("Where(below, added, x)", "Where(below, x, added)")
    assert edited(trust_indices, model(swapped))[0] == 0


def ordered(perm: str, end: str) -> onnx.ModelProto:
    text = f"""
    g (int32[batch, 4] x) => (float{end} y) {{
        rows = Gather(table, x)
        y = Transpose<perm = {perm}>(rows)
    }}
    """
    return parse(text, table=TABLE)


def test_indices_are_transposed_and_not_what_they_point_to() -> None:
    proto = ordered("[1, 0, 2]", "[4, batch, 3]")
    count, made = edited(trust_indices, proto)
    assert (count, operators(made)) == (1, ["Transpose", "Gather"])
    before, after = (run(each, {"x": INDICES})[0] for each in (proto, made))
    assert np.array_equal(before, after)


@pytest.mark.parametrize(("perm", "end"), [("[0, 2, 1]", "[batch, 3, 4]"), ("[2, 1, 0]", "[3, 4, batch]")])
def test_an_order_within_the_rows_stays(perm: str, end: str) -> None:
    assert edited(trust_indices, ordered(perm, end))[0] == 0


def test_rows_that_are_used_otherwise_too_stay() -> None:
    proto = ordered("[1, 0, 2]", "[4, batch, 3]")
    proto.graph.output.append(onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["batch", 4, 3]))
    assert edited(trust_indices, proto)[0] == 0
