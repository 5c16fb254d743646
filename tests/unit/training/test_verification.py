"""The checks of an ONNX file, each on a file that breaks just that."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from inferd_protocol import golden
from inferd_training.errors import VerificationError
from inferd_training.export.golden import check_golden
from inferd_training.export.layers import layer_of
from inferd_training.export.parity import ParityError, Tolerance, check_parity
from inferd_training.export.runtime import Runtime, limits
from inferd_training.export.samples import Samples
from inferd_training.export.structure import check_structure
from onnx import TensorProto, helper, numpy_helper


def model(
    node: onnx.NodeProto | None = None,
    *,
    batch: int | str = "batch",
    opset: int = 17,
    ir: int = 8,
    weight: float = 2.0,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """y = x * w, float [batch, 3], or with another node in the place of the product."""
    graph = helper.make_graph(
        [node or helper.make_node("Mul", ["x", "w"], ["y"], name="model_1/scale_1/mul")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(np.full(3, weight, np.float32), "w")],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def write(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def refuse(tmp_path: Path, proto: onnx.ModelProto) -> str:
    with pytest.raises(VerificationError) as refusal:
        check_structure(write(tmp_path, proto), {"scale"})
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_sound_file_passes(tmp_path: Path) -> None:
    structure, runtime = check_structure(write(tmp_path, model()))
    assert (structure.opset, structure.ir_version, structure.loops) == (17, 8, ())
    assert (structure.inputs, structure.outputs) == ({"x": "tensor(float)"}, {"y": "tensor(float)"})
    assert runtime.run({"x": np.ones((5, 3), np.float32)}, 2)["y"].tolist() == [[2.0] * 3] * 5


def test_the_limits_are_the_runtimes_own(tmp_path: Path) -> None:
    found = limits()
    # What the oldest runtime that the project allows takes, at least; and what is beyond is refused by the runtime too.
    assert found.opset >= 21
    assert found.ir >= 10
    with pytest.raises(VerificationError, match="does not load"):
        Runtime(write(tmp_path, model(ir=found.ir + 1)))


def test_an_opset_beyond_the_runtime_is_refused(tmp_path: Path) -> None:
    message = refuse(tmp_path, model(opset=limits().opset + 1))
    assert f"opset is {limits().opset + 1}, where ONNX Runtime" in message
    assert "opset is 6" in refuse(tmp_path, model(opset=6))


def test_an_ir_version_beyond_the_runtime_is_refused(tmp_path: Path) -> None:
    assert f"IR version is {limits().ir + 1}, where ONNX Runtime" in refuse(tmp_path, model(ir=limits().ir + 1))


def test_an_operator_that_onnx_lacks_is_refused_with_its_layer(tmp_path: Path) -> None:
    message = refuse(tmp_path, model(helper.make_node("Erfc", ["x"], ["y"], name="model_1/scale_1/Erfc")))
    assert "no runtime has the operator Erfc in opset 17 (node 'model_1/scale_1/Erfc', layer 'scale')" in message
    assert "approximate=True" in message


def test_an_operator_newer_than_the_opset_is_refused(tmp_path: Path) -> None:
    # Gelu came with opset 20.
    assert "operator Gelu in opset 17" in refuse(tmp_path, model(helper.make_node("Gelu", ["x"], ["y"])))


def test_an_operator_of_another_domain_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("FusedGelu", ["x"], ["y"], domain="com.example")
    assert "operator FusedGelu of the domain 'com.example'" in refuse(tmp_path, model(node, domains=("com.example",)))


def test_an_operator_hidden_in_a_branch_is_found(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Erfc", ["x"], ["z"])], "branch", [], [value])
    proto = model(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    assert "operator Erfc" in refuse(tmp_path, proto)


def test_a_fixed_batch_axis_is_refused(tmp_path: Path) -> None:
    message = refuse(tmp_path, model(batch=1))
    assert message == "axis 0 of the input 'x' is fixed at 1: export the model with a dynamic batch axis"


def test_what_the_checker_refuses_is_refused(tmp_path: Path) -> None:
    assert "onnx.checker refuses" in refuse(tmp_path, model(helper.make_node("Mul", ["x"], ["y"])))
    # Only shape inference sees that the shapes do not fit.
    reshaped = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])
    assert "onnx.checker refuses" in refuse(tmp_path, model(reshaped))


@pytest.mark.parametrize("content", [b"not a model", b""])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(VerificationError):
        check_structure(tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="cannot be read: No such file"):
        check_structure(tmp_path / "other.onnx")


ROWS = Samples({"x": np.linspace(-2, 2, 600, dtype=np.float32).reshape(200, 3)}, "a ramp")


def doubled(raw: object, _batch: int) -> dict[str, np.ndarray]:
    return {"y": raw["x"] * np.float32(2)}  # type: ignore[index]


def test_parity_counts_what_it_compared(tmp_path: Path) -> None:
    parity = check_parity(Runtime(write(tmp_path, model())), doubled, ROWS)
    assert [(figure.batch, figure.rows) for figure in parity.figures] == [(1, 64), (2, 128), (7, 200), (64, 200)]
    assert all(figure.max_absolute_error == 0 and figure.top1_agreement == 1 for figure in parity.figures)


def test_a_difference_beyond_the_tolerance_fails(tmp_path: Path) -> None:
    runtime = Runtime(write(tmp_path, model(weight=2.001)))
    with pytest.raises(ParityError, match=r"'y' at batch 1 differs by up to 0\.002"):
        check_parity(runtime, doubled, ROWS)
    assert check_parity(runtime, doubled, ROWS, tolerance=Tolerance(0.01, 0.0)).figures[0].max_absolute_error > 0.001


def test_a_difference_that_shows_at_one_batch_size_only_fails(tmp_path: Path) -> None:
    def moody(raw: object, batch: int) -> dict[str, np.ndarray]:
        return {"y": doubled(raw, batch)["y"] + np.float32(batch == 7)}

    with pytest.raises(ParityError, match="at batch 7 differs by up to 1"):
        check_parity(Runtime(write(tmp_path, model())), moody, ROWS)


def test_other_winners_fail_even_within_the_tolerance(tmp_path: Path) -> None:
    def mirrored(raw: object, _batch: int) -> dict[str, np.ndarray]:
        return {"y": np.ascontiguousarray(raw["x"][:, ::-1])}  # type: ignore[index]

    tiny = Samples({"x": ROWS.inputs["x"] * np.float32(1e-6)}, "tiny")
    with pytest.raises(ParityError, match=r"largest element at another place than Keras's in 100\.00% of the rows"):
        check_parity(Runtime(write(tmp_path, model(weight=1.0))), mirrored, tiny)


@pytest.mark.parametrize("runtime", ["Keras itself", "ONNX Runtime"])
def test_values_that_are_not_finite_fail_in_either_runtime(runtime: str, tmp_path: Path) -> None:
    weight = float("nan") if runtime == "ONNX Runtime" else 2.0

    def broken(raw: object, batch: int) -> dict[str, np.ndarray]:
        return {"y": doubled(raw, batch)["y"] * np.float32("nan")}

    with pytest.raises(ParityError, match=f"not finite in {runtime}"):
        check_parity(Runtime(write(tmp_path, model(weight=weight))), broken if weight == 2.0 else doubled, ROWS)


def test_rows_that_look_at_their_neighbours_fail(tmp_path: Path) -> None:
    # Less the batch's mean: Keras does the same, so that the two agree at every size of the batch.
    proto = model(helper.make_node("Sub", ["x", "mean"], ["y"]))
    proto.graph.node.insert(0, helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1))

    def centred(raw: object, batch: int) -> dict[str, np.ndarray]:
        rows = raw["x"]  # type: ignore[index]
        parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        return {"y": np.concatenate([part - part.mean(axis=0, keepdims=True) for part in parts])}

    with pytest.raises(VerificationError, match="'y' of a row changes with the other rows of its batch"):
        check_parity(Runtime(write(tmp_path, proto)), centred, ROWS)


def test_other_shapes_and_names_fail(tmp_path: Path) -> None:
    runtime = Runtime(write(tmp_path, model()))
    with pytest.raises(ParityError, match=r"float32 \[64, 3\] in ONNX Runtime and float32 \[64, 2\] in Keras"):
        check_parity(runtime, lambda raw, batch: {"y": doubled(raw, batch)["y"][:, :2]}, ROWS)
    with pytest.raises(ParityError, match="the outputs are y, where Keras has z"):
        check_parity(runtime, lambda raw, batch: {"z": doubled(raw, batch)["y"]}, ROWS)


def test_an_output_without_the_batch_axis_fails(tmp_path: Path) -> None:
    proto = model(helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "batch"
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    with pytest.raises(VerificationError, match=r"'y' has the shape \[1, 1\] for a batch of 2 rows"):
        Runtime(write(tmp_path, proto)).run({"x": np.ones((4, 3), np.float32)}, 2)


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("model_1/dense_1/MatMul", "dense"),
        ("model_1/dense_1_1/MatMul", "dense_1"),
        ("model_1/block_1/dense_1_1/Relu", "block/dense_1"),
        ("sequential/conv/Conv2D", "conv"),
        ("Shape__12", None),
    ],
)
def test_nodes_are_traced_to_layers(node: str, layer: str | None) -> None:
    assert layer_of(node, {"dense", "dense_1", "block", "conv"}) == layer


def samples(tmp_path: Path, **changes: dict[str, np.ndarray]) -> Path:
    """What the model above answers to the first rows, with changes."""
    x = ROWS.inputs["x"][:4]
    arrays = {"inputs": {"x": x}, "outputs": {"y": x * np.float32(2)}} | changes
    tolerances = dict.fromkeys(arrays["outputs"], golden.Tolerance(1e-3, 0.0))
    golden.write(tmp_path / "golden.npz", golden.Golden(**arrays, tolerances=tolerances))
    return tmp_path / "golden.npz"


def test_golden_answers_are_reproduced_or_refused(tmp_path: Path) -> None:
    runtime = Runtime(write(tmp_path, model()))
    assert check_golden(samples(tmp_path), runtime) == 4
    with pytest.raises(VerificationError, match=r"'y' at batch 1 differs by up to 0\.\d+ from the answers in"):
        check_golden(samples(tmp_path), Runtime(write(tmp_path, model(weight=2.01))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"z": np.ones((4, 3), np.float32)}}, "has the inputs z, where the model has x"),
        ({"outputs": {"z": np.ones((4, 3), np.float32)}}, "has the outputs z, where the model has y"),
        ({"outputs": {"y": np.ones((3, 3), np.float32)}}, r"has arrays of \[3, 4\] rows"),
        ({"outputs": {"y": np.ones((4, 2), np.float32)}}, r"is float32 \[4, 3\], where .* expects float32 \[4, 2\]"),
        ({"inputs": {"x": np.ones((4, 3), np.int8)}}, "fails in a batch of 1"),
    ],
)
def test_golden_samples_that_do_not_fit_are_refused(changes: dict, message: str, tmp_path: Path) -> None:
    runtime = Runtime(write(tmp_path, model()))
    with pytest.raises(VerificationError, match=message):
        check_golden(samples(tmp_path, **changes), runtime)


def test_torn_golden_samples_are_refused(tmp_path: Path) -> None:
    file = samples(tmp_path)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(VerificationError, match="holds no golden samples"):
        check_golden(file, Runtime(write(tmp_path, model())))
