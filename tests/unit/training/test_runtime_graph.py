"""The runtime's own optimised graph in a file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from inferd_training.errors import OptimiseError
from inferd_training.optimise.graph.runtime_graph import Level, offline
from onnx_graphs import normal, operators, parse, rows, run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    proto = parse(
        """g (float[batch, 3, 8, 8] x) => (float[batch, 16, 6, 6] y)
            { c = Conv<kernel_shape = [3, 3]>(x, w)  b = Mul(c, s)  y = Relu(b) }""",
        w=normal(16, 3, 3, 3),
        s=normal(16, 1, 1),
    )
    onnx.helper.set_model_props(proto, {"inferd.labels": "{}"})
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_the_graph_is_written_and_answers_the_same(model: Path, level: Level, tmp_path: Path) -> None:
    written = offline(model, tmp_path / "derived" / "fast.onnx", level)
    assert written == tmp_path / "derived" / "fast.onnx"
    before, after = onnx.load(model), onnx.load(written)
    assert {"Mul"} & set(operators(before))
    assert "Mul" not in operators(after)
    assert (level == "basic") == all(node.domain == "" for node in after.graph.node)
    assert list(after.metadata_props) == list(before.metadata_props)
    feed = rows(before, 3)
    np.testing.assert_allclose(run(after, feed)[0], run(before, feed)[0], rtol=1e-4, atol=1e-5)
    assert [entry.name for entry in written.parent.iterdir()] == ["fast.onnx"]


def test_an_earlier_one_is_replaced(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "fast.onnx"
    output.write_bytes(b"old")
    assert operators(onnx.load(offline(model, output)))


def test_what_cannot_be_had(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "fast.onnx"
    with pytest.raises(OptimiseError, match="the level 'most' came, where one of basic, extended, all was expected"):
        offline(model, output, "most")  # type: ignore[arg-type]
    with pytest.raises(OptimiseError, match=r"none\.onnx is missing"):
        offline(tmp_path / "none.onnx", output)
    with pytest.raises(OptimiseError, match="cannot be written over"):
        offline(model, model)
    with pytest.raises(OptimiseError, match="cannot be written over"):
        offline(model, tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(OptimiseError, match=r"cannot optimise broken\.onnx") as refusal:
        offline(broken, output)
    assert "\n" not in str(refusal.value)
    assert not output.exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx", "broken.onnx"}
