from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from inferd_training.errors import DataError, OptimiseError
from inferd_training.optimise import quantise, sessions
from inferd_training.optimise.candidates import Candidate
from inferd_training.optimise.graph.int8 import int8_operators
from inferd_training.optimise.graph.simplify import simplify
from inferd_training.optimise.judge import ORIGINAL, HeldOut, choose, judge
from inferd_training.optimise.quantise import Calibration
from inferd_training.optimise.report import pareto, table
from inferd_training.optimise.rows import of_files
from inferd_training.optimise.variants import cut_off, named, pool_first
from onnx import helper
from onnx_graphs import parse
from optimise_models import classifier, images, labels


def held_out(rows: int = 2000) -> HeldOut:
    inputs = {"image": images(rows)}
    truth = sessions.load(classifier()).answers(inputs)["probabilities"].argmax(axis=1)
    return HeldOut(inputs, "probabilities", truth, tuple(labels()), f"{rows} rows")


def quantised(proto: onnx.ModelProto, method: Calibration = Calibration.MIN_MAX) -> onnx.ModelProto:
    made = named(proto)
    nodes = quantise.static_nodes(made)
    return quantise.static(made, quantise.calibrate(made, {"image": images(64)}, method), nodes)


def test_the_pool_goes_first_and_nothing_changes() -> None:
    proto = classifier()
    moved, count = pool_first(proto)
    assert count == 1
    kinds = [node.op_type for node in moved.graph.node]
    assert kinds.index("MaxPool") < kinds.index("Relu")
    onnx.checker.check_model(moved, full_check=True)
    inputs = {"image": images(16)}
    before, after = (sessions.load(each).answers(inputs)["probabilities"] for each in (proto, moved))
    assert np.array_equal(before, after)
    assert [node.op_type for node in proto.graph.node] == [node.op_type for node in classifier().graph.node]


def test_a_relu_that_others_read_stays_where_it_is() -> None:
    proto = classifier()
    proto.graph.output.append(helper.make_tensor_value_info("relu", onnx.TensorProto.FLOAT, None))
    assert pool_first(proto)[1] == 0


def test_what_a_relu_cuts_off_is_found_through_the_pool() -> None:
    moved, _ = pool_first(classifier())
    pool, relu = (next(node for node in moved.graph.node if node.op_type == kind) for kind in ("MaxPool", "Relu"))
    assert cut_off(moved) == dict.fromkeys([pool.input[0], relu.input[0]], relu.output[0])
    # What others read as well is needed whole, and so is what it is made of.
    moved.graph.output.append(helper.make_tensor_value_info(pool.input[0], onnx.TensorProto.FLOAT, None))
    assert cut_off(moved) == {relu.input[0]: relu.output[0]}
    moved.graph.output.append(helper.make_tensor_value_info(relu.input[0], onnx.TensorProto.FLOAT, None))
    assert cut_off(moved) == {}


@pytest.mark.parametrize("method", list(Calibration))
def test_no_step_of_int8_is_spent_on_what_a_relu_cuts_off(method: Calibration) -> None:
    moved, _ = pool_first(named(classifier()))
    convolution = next(node for node in moved.graph.node if node.op_type == "Conv")
    ranges = quantise.calibrate(moved, {"image": images(64)}, method, [convolution.name])
    low, high = ranges[convolution.output[0]].range_value
    assert low == 0 < high
    made = quantise.static(moved, ranges, [convolution.name])
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    assert values[f"{convolution.output[0]}_zero_point"] == 0
    assert values[f"{convolution.output[0]}_scale"] == pytest.approx(high.item() / 255)


def test_every_node_gets_a_name_of_its_own() -> None:
    proto = classifier(detours=2)
    for node in proto.graph.node[:3]:
        node.name = "same"
    names = [node.name for node in named(proto).graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


@pytest.mark.parametrize("method", list(Calibration))
def test_static_int8_agrees_and_keeps_what_the_model_says_of_itself(method: Calibration) -> None:
    proto = classifier()
    made = quantised(proto, method)
    onnx.checker.check_model(made, full_check=True)
    assert {entry.key: entry.value for entry in made.metadata_props} == {
        entry.key: entry.value for entry in proto.metadata_props
    }
    assert int8_operators(made) == ("DequantizeLinear", "QuantizeLinear")
    inputs = {"image": images(500)}
    before, after = (sessions.load(each).answers(inputs)["probabilities"] for each in (proto, made))
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.95


def test_dynamic_int8_agrees() -> None:
    proto = named(classifier())
    nodes = quantise.dynamic_nodes(proto)
    assert [node.op_type for node in proto.graph.node if node.name in nodes] == ["MatMul"]
    made = quantise.dynamic(proto, nodes)
    inputs = {"image": images(500)}
    before, after = (sessions.load(each).answers(inputs)["probabilities"] for each in (proto, made))
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.95


def test_an_lstm_in_int8_is_known_for_that() -> None:
    """Its operator is ONNX Runtime's own: not one that no runtime has."""
    drawn = np.random.default_rng(0)
    text = """
    g (float[6, batch, 3] x) => (float[6, 1, batch, 4] y) {
        y = LSTM<hidden_size = 4>(x, W, R)
    }
    """
    proto = named(parse(text, W=drawn.normal(size=(1, 16, 3)), R=drawn.normal(size=(1, 16, 4))))
    made = quantise.dynamic(proto, quantise.dynamic_nodes(proto))
    assert int8_operators(made) == ("DynamicQuantizeLSTM",)
    assert simplify(made).notes == ("nothing was changed: the model is quantised already (DynamicQuantizeLSTM)",)


def test_calibration_rows_that_are_not_finite_are_refused() -> None:
    proto = classifier()
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    del proto.graph.node[0]
    proto.graph.node[0].input[0] = "image"
    rows = images(8).astype(np.float32)
    rows[3, 2, 2, 0] = np.nan
    with pytest.raises(OptimiseError, match="calibration rows of the input 'image' hold values that are not finite"):
        quantise.calibrate(named(proto), {"image": rows}, Calibration.MIN_MAX)
    rows[3, 2, 2, 0] = 3e38
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32(1e30), "scale"))
    with pytest.raises(OptimiseError, match="not finite"):
        quantise.calibrate(named(proto), {"image": rows}, Calibration.MIN_MAX)


def test_a_model_that_int8_breaks_is_refused_by_the_gate_and_not_chosen() -> None:
    broken = quantised(classifier(outlier=3000.0))
    given = held_out()
    found = judge(
        classifier(outlier=3000.0),
        [Candidate("INT8 of the outlier", broken, "")],
        given,
        max_drop_points=0.1,
        min_agreement=0,
        threads=1,
    )
    assert [one.candidate.name for one in found] == [ORIGINAL, "INT8 of the outlier"]
    assert found[1].comparison.agreement < 0.97
    assert "the accuracy falls by" in found[1].refused
    with pytest.raises(OptimiseError, match=r"nothing beats the original .* was refused: the accuracy falls by"):
        choose(found)
    assert "refused" in table(found, None)


def test_the_fastest_that_passes_is_chosen() -> None:
    given = held_out()
    candidates = [Candidate("same", classifier(), ""), Candidate("straight", classifier(), "")]
    found = judge(classifier(detours=40), candidates, given, max_drop_points=0.1, min_agreement=0, threads=1)
    assert not any(one.refused for one in found)
    chosen = choose(found)
    assert chosen.candidate.name in ("same", "straight")
    assert chosen.speed == max(one.speed for one in found) > 1.1
    assert "**chosen**" in table(found, chosen)


def test_who_keeps_too_few_of_the_original_s_answers_is_refused() -> None:
    given = held_out()
    other = Candidate("another model", classifier(seed=7), "")
    found = judge(classifier(), [other], given, max_drop_points=100, min_agreement=0.99, threads=1)
    assert "where at least 99.00% were expected" in found[1].refused


def test_nothing_is_chosen_where_nothing_is_faster() -> None:
    given = held_out(200)
    found = judge(
        classifier(),
        [Candidate("slower", classifier(detours=40), "")],
        given,
        max_drop_points=5,
        min_agreement=0,
        threads=1,
    )
    with pytest.raises(OptimiseError, match=r"nothing beats the original by 1\.02x .*'slower'.*: serve the original"):
        choose(found)


def test_the_front_holds_what_nobody_beats() -> None:
    assert pareto([(1, 90), (2, 89), (1.5, 91), (3, 80), (2.5, 79)]) == [(1.5, 91), (2, 89), (3, 80)]


def test_rows_from_files(tmp_path: Path) -> None:
    report = {"model": {"inputs": {"image": "uint8"}}, "labels": {"probabilities": labels()}}
    original = sessions.load(classifier()).answers
    path = tmp_path / "rows.npz"
    np.savez(path, image=images(20), truth=np.arange(20) % 4)
    given = of_files(report, path, path, original)
    assert given.held_out.truth.tolist() == [number % 4 for number in range(20)]
    assert given.calibration is not None
    assert set(given.calibration) == {"image"}
    np.savez(path, image=images(20))
    given = of_files(report, None, path, original)
    assert given.held_out.measured_by_original
    assert given.calibration is None
    for arrays, text in (
        ({"picture": images(2)}, "holds picture, where the inputs image were expected"),
        ({"image": images(2), "truth": np.zeros(3, int)}, "different lengths"),
        ({"image": images(0)}, "empty"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=text):
            of_files(report, None, path, original)
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot be read as a \.npz"):
        of_files(report, None, path, original)


def test_gains_are_of_runs_that_take_turns() -> None:
    slow, fast = sessions.load(classifier(detours=40)), sessions.load(classifier())
    feeds = sessions.feeds({"image": images(3)})
    assert {batch: feed["image"].shape[0] for batch, feed in feeds.items()} == {1: 1, 8: 8, 64: 64}
    gained = sessions.gains(slow, fast, feeds, 5)
    assert sessions.overall(gained) > 1.1
    with pytest.raises(OptimiseError, match="does not load"):
        sessions.Session(b"no model")
