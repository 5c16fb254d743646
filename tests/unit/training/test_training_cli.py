"""The commands: the whole way on a tiny data set, and one sentence for each mistake."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras_models
import numpy as np
import onnx
import pytest
from inferd_protocol import artefact
from inferd_protocol.command import main
from tiny_data import tiny_contents, write

Inferd = Callable[..., list[str]]


@pytest.fixture
def inferd(capsys: pytest.CaptureFixture[str]) -> Inferd:
    """Runs a command that must succeed; gives the lines of its output."""

    def run(*arguments: object) -> list[str]:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert status == 0, output.err
        return output.out.splitlines()

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail; gives the one line that it says."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        (*_progress, line) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"inferd {arguments[0]}: ")
        return line

    return run


def test_loading_the_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, inferd_training.cli, inferd_training\n"
        "heavy = {'numpy', 'tensorflow', 'keras', 'onnx', 'onnxruntime', 'matplotlib', 'tf2onnx', 'tqdm'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_publishing_and_data_do_not_load_tensorflow() -> None:
    code = (
        "import sys, inferd_training.publish, inferd_training.data.datasets\n"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_whole_way(inferd: Inferd, data_folder: Path, tmp_path: Path) -> None:
    run, exported, repository = tmp_path / "run", tmp_path / "export", tmp_path / "repository"
    lines = inferd("data", "--dataset", "mnist", "--data-dir", data_folder)
    assert lines[:2] == ["mnist from the user's own files", "48 training images, 24 test images, 10 classes"]
    assert len(lines) == 6

    options = [
        "--dataset",
        "mnist",
        "--data-dir",
        data_folder,
        "--epochs",
        8,
        "--batch-size",
        8,
        "--learning-rate",
        3e-3,
    ]
    inferd("train", *options, "--seed", 5, "--output", run)
    assert sorted(path.name for path in run.iterdir()) == [
        "history.json",
        "learning-curves.png",
        "model.keras",
        "run.json",
    ]
    assert len(json.loads((run / "history.json").read_text())["val_accuracy"]) == 8

    lines = inferd("evaluate", run)
    assert lines[0].split() == ["class", "precision", "recall", "examples"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert lines[-1].startswith(f"accuracy {metrics['accuracy']:.4f}, loss")
    assert np.array(metrics["confusion"]).sum() == 24
    assert (run / "confusion-matrix.png").read_bytes().startswith(b"\x89PNG")

    lines = inferd("export", run, "--output", exported)
    assert lines[-1] == f"verified, wrote {exported}"
    assert "inputs: image tensor(uint8)" in lines
    report = json.loads((exported / "report.json").read_text())
    assert report["parity"]["samples"] == "the 24 test images of mnist"
    assert report["metrics"]["accuracy"] == metrics["accuracy"]
    assert report["metrics"]["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    proto = onnx.load(exported / "model.onnx")
    metadata = {entry.key: json.loads(entry.value) for entry in proto.metadata_props}
    assert metadata[artefact.LABELS_KEY] == {"probabilities": list("0123456789")}
    assert metadata[artefact.TRAINING_KEY]["settings"]["seed"] == 5
    assert metadata[artefact.DATA_KEY]["source"] == "the user's own files"
    assert len(metadata[artefact.DATA_KEY]["sha256"]) == 4
    # A published file must not say where its maker keeps things.
    assert str(tmp_path).encode() not in (exported / "model.onnx").read_bytes()
    assert str(tmp_path) not in (exported / "report.json").read_text()

    lines = inferd("verify", exported, "--keras", run)
    assert lines[-1] == "verified: as its report says, golden answers of 16 rows as recorded, compared with Keras"
    lines = inferd("verify", exported / "model.onnx")
    assert lines[-1].startswith(
        "verified: as its report says, golden answers of 16 rows as recorded, not compared with"
    )

    for version in (1, 2):
        published = repository / "digits" / str(version)
        assert inferd("publish", exported, "--repository", repository, "--name", "digits") == [f"published {published}"]
        assert sorted(path.name for path in published.iterdir()) == ["golden.npz", "model.onnx", "report.json"]


def test_any_keras_file(inferd: Inferd, refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "mine.keras"
    keras_models.sequential().save(path)
    (tmp_path / "labels.txt").write_text("cat\ndog\neel\n")
    (tmp_path / "pre.json").write_text('{"picture": {"dtype": "uint8", "scale": 0.5}}')
    np.savez(tmp_path / "rows.npz", picture=np.zeros((3, 8, 8, 1), np.uint8))
    options = ["--labels", tmp_path / "labels.txt", "--preprocessing", tmp_path / "pre.json"]
    lines = inferd("export", path, "--output", tmp_path / "out", *options, "--samples", tmp_path / "rows.npz")
    assert "inputs: picture tensor(uint8)" in lines
    assert "parity with Keras on 3 rows given by the user:" in lines
    assert json.loads((tmp_path / "out" / "report.json").read_text())["labels"] == {"score": ["cat", "dog", "eel"]}
    # Against another model of the same shape.
    other = tmp_path / "other.keras"
    keras_models.sequential().save(other)
    line = refused("verify", tmp_path / "out", "--keras", other)
    assert "differs by up to" in line
    assert "every layer of a fresh conversion agrees: the file is not this model's conversion" in line


def test_a_loop_is_reported(inferd: Inferd, tmp_path: Path) -> None:
    keras_models.recurrent("GRU").save(tmp_path / "gru.keras")
    lines = inferd("export", tmp_path / "gru.keras", "--output", tmp_path / "out")
    (slow,) = (line for line in lines if line.startswith("slow:"))
    assert "Loop node" in slow
    assert "from the layer 'memory'" in slow


def test_training_again_replaces_the_run_but_nothing_else(
    inferd: Inferd, refused: Callable[..., str], data_folder: Path, tmp_path: Path
) -> None:
    train = ["train", "--dataset", "mnist", "--data-dir", data_folder, "--epochs", 1, "--output", tmp_path / "run"]
    inferd(*train)
    inferd("evaluate", tmp_path / "run")
    inferd(*train)
    assert not (tmp_path / "run" / "metrics.json").exists()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "holds other files than an earlier training's" in refused(*train)


def test_data_that_changed_since_the_training_are_refused(
    inferd: Inferd, refused: Callable[..., str], data_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    inferd("train", "--dataset", "mnist", "--data-dir", data_folder, "--epochs", 1, "--output", run)
    other = write(tmp_path / "other", tiny_contents(seed=1))
    assert "are not those that" in refused("evaluate", run, "--data-dir", other)
    assert "are not those that" in refused("export", run, "--data-dir", other, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_the_runs_own_is_refused(
    inferd: Inferd, refused: Callable[..., str], data_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    inferd("train", "--dataset", "mnist", "--data-dir", data_folder, "--epochs", 1, "--output", run)
    keras_models.dense().save(run / "model.keras")
    assert "is not the model that was trained there" in refused("export", run, "--output", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "--data-dir", "{tmp}/nowhere"], "nowhere is not a folder"),
        (["train", "--family", "vit", "--output", "{tmp}/run"], "'vit' is not a model family: choose from cnn"),
        (["evaluate", "{tmp}"], "is not a run folder"),
        (["export", "{tmp}", "--output", "{tmp}/out"], "is not a run folder"),
        (["export", "{tmp}/no.keras", "--output", "{tmp}/out"], "no.keras is not a file"),
        (["export", "{tmp}", "--output", "{tmp}/out", "--labels", "x"], "--labels is for a .keras file"),
        (["export", "x.keras", "--output", "{tmp}/out", "--data-dir", "x"], "--data-dir is for a run folder"),
        (["export", "x.keras", "--output", "{tmp}/out", "--atol", "nan"], "finite numbers from 0"),
        (["verify", "{tmp}"], "model.onnx is missing"),
        (["publish", "{tmp}", "--repository", "{tmp}/repo", "--name", "x"], "lacks model.onnx"),
        (["publish", "{tmp}", "--repository", "{tmp}/repo", "--name", "../x"], "is not a model name"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert message in refused(*(argument.format(tmp=tmp_path) for argument in arguments))


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--labels", "cat\ndog\n", "2 labels came for 'score', whose last axis is 3"),
        ("--labels", '{"score": "cat"}', "was expected to hold JSON {output: [label, ...]}"),
        ("--labels", '{"score": [', "is not valid JSON"),
        ("--preprocessing", "[]", "was expected to hold a JSON object"),
        ("--preprocessing", '{"picture": {"dtype": "uint8"}}', "was expected to hold JSON {input:"),
        ("--preprocessing", '{"picture": {"dtype": "pixels", "scale": 1}}', "was expected to hold JSON {input:"),
    ],
)
def test_option_files_that_do_not_fit(
    option: str, content: str, message: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    keras_models.sequential().save(tmp_path / "mine.keras")
    (tmp_path / "option").write_text(content)
    command = ["export", tmp_path / "mine.keras", "--output", tmp_path / "out", option, tmp_path / "option"]
    assert message in refused(*command)


def test_standard_error_is_quiet_where_it_is_no_terminal(tmp_path: Path) -> None:
    keras_models.dense().save(tmp_path / "mine.keras")
    code = "import sys; from inferd_protocol.command import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "export", str(tmp_path / "mine.keras"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Our own words only: nothing of TensorFlow's, Keras's or tf2onnx's.
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == [
        "converting",
        "computing",
        "checking",
        "comparing",
    ]
