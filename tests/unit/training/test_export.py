"""The export from end to end on tiny models: names, axes, metadata, parity, and nothing left behind when it fails."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from inferd_protocol import artefact, golden
from inferd_training.errors import DataError, ExportError, ModelError, VerificationError
from inferd_training.export.parity import Tolerance
from inferd_training.export.pipeline import Job, export, verify
from inferd_training.export.samples import RawInput, Samples, load_samples
from inferd_training.families.family import Scaling
from inferd_training.files import sha256
from keras import layers

Save = Callable[[keras.Model], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def saved(model: keras.Model) -> Path:
        path = tmp_path / "model.keras"
        model.save(path)
        return path

    return saved


def ends(path: Path) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    graph = onnx.load(path).graph
    return tuple(  # type: ignore[return-value]
        {end.name: [dim.dim_param or dim.dim_value for dim in end.type.tensor_type.shape.dim] for end in part}
        for part in (graph.input, graph.output)
    )


@pytest.mark.parametrize("kind", keras_models.MODELS)
def test_models_of_every_kind(kind: str, save: Save, tmp_path: Path) -> None:
    model = keras_models.MODELS[kind]()
    report = export(Job(save(model)), tmp_path / "out")
    inputs, outputs = ends(tmp_path / "out" / "model.onnx")
    expected = {
        "dense": ({"features": ["batch", 6]}, {model.layers[-1].name: ["batch", 3]}),
        "several": (
            {"zebra": ["batch", 4], "ant": ["batch", 3]},
            {"yak": ["batch", 2], "bee": ["batch", 3], "middle": ["batch", 2]},
        ),
        "by_name": ({"b": ["batch", 2], "a": ["batch", 3]}, None),
        "lstm": ({"series": ["batch", 6, 4]}, {"forecast": ["batch", 2]}),
        "gru": ({"series": ["batch", 6, 4]}, {"forecast": ["batch", 2]}),
        "states": (
            {"series": ["batch", 6, 4]},
            {"memory": ["batch", 5], "memory_1": ["batch", 5], "memory_2": ["batch", 5]},
        ),
        "transformer": ({"tokens": ["batch", "tokens_axis1"]}, {"logits": ["batch", "logits_axis1", 11]}),
        "sequential": ({"picture": ["batch", 8, 8, 1]}, {"score": ["batch", 3]}),
        "preprocessing": ({"picture": ["batch", 8, 8, 3]}, {"score": ["batch", 3]}),
    }[kind]
    if kind == "by_name":
        assert (list(inputs), list(outputs)) == ([t.name for t in model.inputs], model.output_names)
        assert set(inputs) == {"a", "b"}
        assert outputs == {"x": ["batch", 4], "y": ["batch", 2]}
    else:
        # The order counts: it is the model's own.
        assert (list(inputs.items()), list(outputs.items())) == (list(expected[0].items()), list(expected[1].items()))
    assert report["verified"] is True
    assert {figure["batch"] for figure in report["parity"]["figures"]} == {1, 2, 7, 64}
    assert "random" in report["parity"]["samples"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_a_users_float_model_computes_what_keras_computes(save: Save, tmp_path: Path) -> None:
    model = keras_models.several()
    export(Job(save(model)), tmp_path / "out")
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    zebra = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    ant = np.array([[0, 1, 2], [6, 5, 4], [3, 3, 3], [1, 0, 6], [2, 2, 2]], np.int32)
    found = session.run(["bee", "yak"], {"ant": ant, "zebra": zebra})
    yak, bee, _ = model.predict([zebra, ant], verbose=0)
    np.testing.assert_allclose(found[0], bee, atol=1e-6)
    np.testing.assert_allclose(found[1], yak, atol=1e-6)


def test_names_that_tensorflow_would_alter_survive(save: Save, tmp_path: Path) -> None:
    value = keras.Input((3,), name="my input.1")
    model = keras.Model(value, layers.Dense(2, name="score")(value))
    export(Job(save(model)), tmp_path / "out")
    assert ends(tmp_path / "out" / "model.onnx") == ({"my input.1": ["batch", 3]}, {"score": ["batch", 2]})


def test_preprocessing_happens_in_the_graph(save: Save, tmp_path: Path) -> None:
    model = keras_models.sequential()
    path = save(model)
    scaling = {"picture": Scaling("uint8", 1 / 255, -0.5)}
    labels = {"score": ["a", "b", "c"]}
    export(Job(path, labels, scaling, data={"name": "mine"}, training={"epochs": 3}), tmp_path / "out")
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    (found,) = session.run(None, {"picture": pixels})
    np.testing.assert_allclose(found, model.predict(pixels / np.float32(255) - np.float32(0.5), verbose=0), atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata[artefact.LABELS_KEY]) == labels
    assert json.loads(metadata[artefact.PREPROCESSING_KEY]) == {
        "picture": {"dtype": "uint8", "scale": 1 / 255, "offset": -0.5}
    }
    assert json.loads(metadata[artefact.DATA_KEY]) == {"name": "mine"}
    assert json.loads(metadata[artefact.TRAINING_KEY]) == {"epochs": 3}
    versions = json.loads(metadata[artefact.VERSIONS_KEY])
    assert versions["keras"] == keras.__version__
    assert versions["onnxruntime"] == ort.__version__
    # The file alone is enough to verify it again, against the Keras model too.
    assert verify(tmp_path / "out", keras_model=path)["parity"]["figures"]


def test_known_classes_give_metrics_in_both_runtimes(save: Save, tmp_path: Path) -> None:
    model = keras_models.dense()
    output = model.output_names[0]
    rows = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
    truth = model.predict(rows, verbose=0).argmax(axis=1).astype(np.uint8)
    truth[:7] = (truth[:7] + 1) % 3
    samples = Samples({"features": rows}, "mine", truth)
    report = export(Job(save(model), {output: ["a", "b", "c"]}, samples=lambda _inputs: samples), tmp_path / "out")
    assert report["metrics"]["accuracy"] == pytest.approx(0.9)
    assert report["metrics"]["onnx_accuracy"] == pytest.approx(0.9)
    # 70 rows are all that there are, also at batch 7, which takes up to 448.
    assert [figure["rows"] for figure in report["parity"]["figures"]] == [64, 70, 70, 70]
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert json.loads(metadata[artefact.TRAINING_KEY])["metrics"]["examples"] == 70


def test_a_gru_becomes_a_loop_and_the_report_says_how_to_avoid_it(save: Save, tmp_path: Path) -> None:
    (loop,) = export(Job(save(keras_models.recurrent("GRU"))), tmp_path / "gru")["model"]["loops"]
    assert (loop["operator"], loop["layer"]) == ("Loop", "memory")
    assert "unroll=True" in loop["fix"]
    assert "LSTM" in loop["fix"]
    # What the fix says is true.
    assert export(Job(save(keras_models.recurrent("GRU", unroll=True))), tmp_path / "unrolled")["model"]["loops"] == []
    assert export(Job(save(keras_models.recurrent("LSTM"))), tmp_path / "lstm")["model"]["loops"] == []


def test_an_exact_gelu_is_refused_with_layer_and_fix(save: Save, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no runtime has the operator Erfc") as refusal:
        export(Job(save(keras_models.nested())), tmp_path / "out")
    assert "layer 'gate'" in str(refusal.value)
    assert "approximate=True" in str(refusal.value)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_weights_that_are_not_numbers_are_refused_by_layer(save: Save, tmp_path: Path) -> None:
    model = keras_models.dense()
    second = model.layers[2]
    kernel, bias = second.get_weights()
    second.set_weights([np.full_like(kernel, np.nan), bias])
    with pytest.raises(VerificationError, match="not finite") as refusal:
        export(Job(save(model)), tmp_path / "out")
    assert f"the layer '{second.name}' is the first" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_the_earlier_one(save: Save, tmp_path: Path) -> None:
    export(Job(save(keras_models.dense())), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(VerificationError):
        export(Job(save(keras_models.nested())), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    report = export(Job(save(keras_models.sequential())), tmp_path / "out")
    assert "picture" in report["model"]["inputs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "out"]


def test_a_folder_with_other_files_is_left_alone(save: Save, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="holds other files"):
        export(Job(save(keras_models.dense())), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_a_fixed_batch_axis_is_refused(save: Save, tmp_path: Path) -> None:
    value = keras.Input(batch_shape=(1, 3), name="x")
    with pytest.raises(ModelError, match="axis 0 of the input 'x' is fixed at 1"):
        export(Job(save(keras.Model(value, layers.Dense(2)(value)))), tmp_path / "out")


def test_labels_and_preprocessing_must_fit_the_model(save: Save, tmp_path: Path) -> None:
    path = save(keras_models.sequential())
    with pytest.raises(ExportError, match="2 labels came for 'score', whose last axis is 3"):
        export(Job(path, {"score": ["a", "b"]}), tmp_path / "out")
    with pytest.raises(ExportError, match="labels came for 'other', where the outputs are score"):
        export(Job(path, {"other": ["a", "b", "c"]}), tmp_path / "out")
    with pytest.raises(ExportError, match="preprocessing is declared for pixels, where the model's inputs are picture"):
        export(Job(path, preprocessing={"pixels": Scaling("uint8", 1.0)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_tensorflow_says_is_passed_on(save: Save, tmp_path: Path) -> None:
    value = keras.Input((3,), name="x")
    with pytest.raises(ExportError, match="'my score' is not a valid scope name") as refusal:
        export(Job(save(keras.Model(value, layers.Dense(2, name="my score")(value)))), tmp_path / "out")
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"not a model"])
def test_a_file_that_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.keras").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded by Keras") as refusal:
        export(Job(tmp_path / "model.keras"), tmp_path / "out")
    assert "\n" not in str(refusal.value)
    with pytest.raises(ModelError, match="is not a file"):
        export(Job(tmp_path / "nothing.keras"), tmp_path / "out")


INPUTS = (RawInput("a", (2,), "float32"), RawInput("b", (None,), "int32"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((3, 2), np.float32)}, "holds a, where the inputs a, b were expected"),
        ({"a": np.zeros((3, 2), np.float32), "b": np.zeros((4, 9), np.int32)}, "3, 4 rows"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((3, 9), np.int32)}, r"float64 \[3, 2\], where float32 \[rows, 2\]"),
        ({"a": np.zeros((3, 4), np.float32), "b": np.zeros((3, 9), np.int32)}, r"\[3, 4\], where"),
        ({"a": np.zeros((0, 2), np.float32), "b": np.zeros((0, 9), np.int32)}, "0 rows"),
    ],
)
def test_samples_must_fit_the_inputs(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / "samples.npz", INPUTS)


def test_samples_of_the_user_are_compared(save: Save, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", features=np.ones((3, 6), np.float32))
    job = Job(save(keras_models.dense()), samples=lambda inputs: load_samples(tmp_path / "samples.npz", inputs))
    assert export(job, tmp_path / "out")["parity"]["samples"] == "3 rows given by the user"


def test_golden_samples_are_real_rows_and_the_answers_of_the_file(save: Save, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
    model = keras_models.dense()
    job = Job(save(model), samples=lambda _inputs: Samples({"features": rows}, "mine"), tolerance=Tolerance(0.02, 0.0))
    report = export(job, tmp_path / "out")
    file = tmp_path / "out" / artefact.GOLDEN_FILE
    samples = golden.read(file)
    chosen = samples.inputs["features"]
    assert chosen.shape == (golden.MOST_ROWS, 6)
    assert {row.tobytes() for row in chosen} <= {row.tobytes() for row in rows}
    output = model.output_names[0]
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"features": chosen})[0], samples.outputs[output], atol=1e-6)
    # What the user allows is allowed here too.
    assert samples.tolerances[output] == golden.Tolerance(0.02, 0.01)
    assert report["golden"]["rows"] == golden.MOST_ROWS
    assert report["golden"]["sha256"] == sha256(file)
    assert verify(tmp_path / "out")["golden"] == {"rows": golden.MOST_ROWS}


def test_rows_too_large_to_travel_are_left_out(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(keras_models.dense())
    # A row is six floats and its answer three.
    monkeypatch.setattr("inferd_training.export.golden._MOST_BYTES", 5 * 36)
    assert export(Job(path), tmp_path / "out")["golden"]["rows"] == 5
    monkeypatch.setattr("inferd_training.export.golden._MOST_BYTES", 35)
    said: list[str] = []
    assert "golden" not in export(Job(path), tmp_path / "out", said.append)
    assert any("too large" in line for line in said)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["model.onnx", "report.json"]
    assert "golden" not in verify(tmp_path / "out")
