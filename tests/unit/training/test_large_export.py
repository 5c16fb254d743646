"""Models whose weights lie in a file of their own: exported, verified, published; told apart from what was swapped."""

import functools
import json
from pathlib import Path
from typing import Any

import keras
import keras_models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from inferd_protocol.artefact import MODEL_FILE, REPORT_FILE, WEIGHTS_FILE
from inferd_protocol.external_data import data_files
from inferd_training import models
from inferd_training.errors import ExportError, PublishError, VerificationError
from inferd_training.export import convert, locate, weights
from inferd_training.export.pipeline import Job, export, verify
from inferd_training.files import sha256
from inferd_training.publish import publish
from keras import layers
from onnx import TensorProto, helper, numpy_helper

PAGE = 4096


def dense(seed: int = 0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((24,), name="x"), layers.Dense(64, activation="relu"), layers.Dense(32, name="y")]
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with external weights, beside the Keras model."""
    folder = tmp_path_factory.mktemp("large")
    dense().save(folder / "model.keras")
    export(Job(folder / "model.keras", external_from=1), folder / "out")
    return folder


@pytest.fixture
def copy(large: Path, tmp_path: Path) -> Path:
    """One to spoil."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (large / "out").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / REPORT_FILE).read_text()))


def test_the_weights_lie_outside_and_the_report_vouches_for_both_files(large: Path) -> None:
    out = large / "out"
    assert data_files(out / MODEL_FILE) == (WEIGHTS_FILE,)
    assert sorted(path.name for path in out.iterdir()) == ["golden.npz", MODEL_FILE, WEIGHTS_FILE, REPORT_FILE]
    found = report_of(out)["model"]
    assert found["sha256"] == sha256(out / MODEL_FILE)
    size = (out / WEIGHTS_FILE).stat().st_size
    assert found["weights"] == {WEIGHTS_FILE: {"sha256": sha256(out / WEIGHTS_FILE), "bytes": size}}
    proto = onnx.load(out / MODEL_FILE, load_external_data=False)
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in proto.graph.initializer
        if tensor.external_data
    ]
    assert len(places) == 2
    assert all(int(place["offset"]) % PAGE == 0 for place in places)
    assert max(int(place["offset"]) + int(place["length"]) for place in places) == size


def test_the_answers_are_keras_s(large: Path) -> None:
    x = np.random.default_rng(1).random((5, 24), np.float32)
    session = ort.InferenceSession(large / "out" / MODEL_FILE, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"x": x})
    expected = keras.models.load_model(large / "model.keras")(x)
    np.testing.assert_allclose(answer, np.asarray(expected), rtol=1e-4, atol=1e-5)


def test_it_is_verified_again_alone_and_against_keras(large: Path) -> None:
    found = verify(large / "out", keras_model=large / "model.keras")
    assert found["reported"]
    assert set(found) == {"model", "reported", "golden", "parity"}


def test_below_the_threshold_all_is_in_one_file(large: Path, tmp_path: Path) -> None:
    report = export(Job(large / "model.keras"), tmp_path / "out")
    assert report["model"]["weights"] == {}
    assert not (tmp_path / "out" / WEIGHTS_FILE).exists()


def test_an_export_replaces_one_of_the_other_kind(large: Path, tmp_path: Path) -> None:
    for external_from in (1, 10**9, 1):
        export(Job(large / "model.keras", external_from=external_from), tmp_path / "out")
        assert (tmp_path / "out" / WEIGHTS_FILE).exists() == (external_from == 1)
        verify(tmp_path / "out")


@pytest.mark.parametrize("kind", ["several", "lstm", "transformer"])
def test_models_of_every_kind_in_the_way_for_large_ones(kind: str, tmp_path: Path) -> None:
    keras_models.MODELS[kind]().save(tmp_path / "model.keras")
    export(Job(tmp_path / "model.keras", external_from=1), tmp_path / "out")
    verify(tmp_path / "out", keras_model=tmp_path / "model.keras")


def widths(model: keras.Model, constant_bytes: int) -> list[int]:
    """The sizes of the weights that are inputs during a conversion, in bytes."""
    return [models.bytes_of(weight) for weight in convert._large_weights(model, constant_bytes)]


def test_the_largest_weights_stay_out_of_a_conversion_until_the_rest_is_small() -> None:
    model = dense()
    kernels = [64 * 32 * 4, 24 * 64 * 4]
    everything = models.weight_bytes(model)
    assert widths(model, everything) == []
    assert widths(model, everything - 1) == kernels[:1]
    assert widths(model, everything - kernels[0] - 1) == kernels
    # Biases are worth no input.
    assert widths(model, 0) == kernels
    assert widths(model, convert.MOST_CONSTANT_BYTES) == []


def test_a_wide_lstm_is_no_loop_beside_weights_that_stay_out() -> None:
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    hidden = layers.Embedding(100, 64, name="table")(tokens)
    model = keras.Model(tokens, layers.Dense(2, name="y")(layers.LSTM(32, name="memory")(hidden)))
    assert widths(model, 1) == [100 * 64 * 4]
    operators = [node.op_type for node in convert.convert(model, {}, constant_bytes=1).graph.node]
    assert operators.count("LSTM") == 1
    assert "Loop" not in operators


def test_a_faulty_layer_is_named_where_weights_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "convert", functools.partial(convert.convert, constant_bytes=1))
    monkeypatch.setattr(locate, "save", functools.partial(weights.save, external_from=1))
    model = dense()
    kernel, bias = model.layers[0].get_weights()
    model.layers[0].set_weights([np.full_like(kernel, np.nan), bias])
    said = locate.first_faulty_layer(model, {"x": np.ones((3, 24), np.float32)}, {})
    assert said.startswith(f"the layer '{model.layers[0].name}' is the first whose output")
    model.layers[0].set_weights([kernel, bias])
    said = locate.first_faulty_layer(model, {"x": np.ones((3, 24), np.float32)}, {})
    assert said.startswith("every layer of a fresh conversion agrees")


def test_it_is_published_whole(large: Path, tmp_path: Path) -> None:
    published = publish(large / "out", tmp_path / "repository", "m")
    for path in (large / "out").iterdir():
        assert (published / path.name).read_bytes() == path.read_bytes()
    assert (published / WEIGHTS_FILE).stat().st_nlink == 1
    assert verify(published)["reported"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip, f"{WEIGHTS_FILE} is not the file that was verified"),
        (cut, "it is cut off"),
        (Path.unlink, "which is missing beside it"),
        (lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "a link that leaves the model's folder"),
    ],
)
def test_weights_that_are_others_are_neither_verified_nor_published(
    spoil: Any, message: str, copy: Path, tmp_path: Path
) -> None:
    spoil(copy / WEIGHTS_FILE)
    with pytest.raises(VerificationError, match=message) as refusal:
        verify(copy)
    assert "\n" not in str(refusal.value)
    with pytest.raises(PublishError, match=message):
        publish(copy, tmp_path / "repository", "m")
    assert [path for path in (tmp_path / "repository").rglob("*") if path.is_file()] == []


def rewrite(copy: Path, location: str) -> None:
    """Has every tensor lie elsewhere, and a report that vouches for it."""
    proto = onnx.load(copy / MODEL_FILE, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (copy / MODEL_FILE).write_bytes(proto.SerializeToString())
    document = report_of(copy)
    document["model"]["sha256"] = sha256(copy / MODEL_FILE)
    (copy / REPORT_FILE).write_text(json.dumps(document))


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_a_model_that_would_read_elsewhere_is_refused(location: str, copy: Path, tmp_path: Path) -> None:
    rewrite(copy, location)
    with pytest.raises(VerificationError, match="expected a file below the model's own folder"):
        verify(copy)
    (copy / REPORT_FILE).rename(tmp_path / "aside")
    with pytest.raises(VerificationError, match="expected a file below the model's own folder"):
        verify(copy / MODEL_FILE)
    (tmp_path / "aside").rename(copy / REPORT_FILE)
    with pytest.raises(PublishError, match="expected a file below the model's own folder"):
        publish(copy, tmp_path / "repository", "m")


def test_files_and_report_must_name_the_same(copy: Path) -> None:
    (copy / "other").write_bytes((copy / WEIGHTS_FILE).read_bytes())
    rewrite(copy, "other")
    with pytest.raises(VerificationError, match=f"keeps weights in other, where the report names {WEIGHTS_FILE}"):
        verify(copy)
    document = report_of(copy)
    document["model"]["weights"] = {"other": {"sha256": sha256(copy / "other")}}
    (copy / REPORT_FILE).write_text(json.dumps(document))
    with pytest.raises(VerificationError, match=f"{WEIGHTS_FILE} is not of the model beside it"):
        verify(copy)
    (copy / WEIGHTS_FILE).unlink()
    assert verify(copy)["reported"]


@pytest.mark.parametrize("part", [[], "x", {"a": 1}, {WEIGHTS_FILE: {}}])
def test_a_report_that_makes_no_sense_is_refused(part: Any, copy: Path) -> None:
    document = report_of(copy)
    document["model"]["weights"] = part
    (copy / REPORT_FILE).write_text(json.dumps(document))
    with pytest.raises(VerificationError, match=r"is not a report of an export|the report names"):
        verify(copy)


def proto_of(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])
    node = helper.make_node("Identity", ["x"], ["x1"])
    other = helper.make_tensor_value_info("x1", TensorProto.FLOAT, ["batch", 1])
    return helper.make_model(helper.make_graph([node], "g", [value], [other], tensors))


def test_tensors_of_every_form_come_back_as_they_were(tmp_path: Path) -> None:
    floats = np.arange(1000, dtype=np.float32)
    tensors = [
        helper.make_tensor("typed", TensorProto.FLOAT, [1000], floats.tolist()),
        numpy_helper.from_array(floats.astype(np.float16), "raw"),
        numpy_helper.from_array(np.zeros(3, np.int64), "small"),
        helper.make_tensor("texts", TensorProto.STRING, [500], [b"abc"] * 500),
    ]
    expected = [numpy_helper.to_array(tensor) for tensor in tensors]
    weights.save(proto_of(*tensors), tmp_path / MODEL_FILE, external_from=1)
    for name, array in zip(("typed", "raw", "small", "texts"), expected, strict=True):
        (found,) = [t for t in onnx.load(tmp_path / MODEL_FILE).graph.initializer if t.name == name]
        np.testing.assert_array_equal(numpy_helper.to_array(found), array)
    inside = [
        t.name
        for t in onnx.load(tmp_path / MODEL_FILE, load_external_data=False).graph.initializer
        if not t.external_data
    ]
    assert inside == ["small", "texts"]


def test_a_disk_that_is_full_is_one_sentence(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inferd_training.export.pipeline.save", full)
    with pytest.raises(ExportError, match="No space left on device"):
        export(Job(large / "model.keras"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
