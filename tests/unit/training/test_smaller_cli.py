"""The commands that make a run smaller: they write runs like any other, and nothing that the gate refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import keras_models
import onnx
import pytest
from inferd_protocol import artefact
from inferd_protocol.command import main
from tiny_data import tiny_contents, write

ANY_DROP = ["--max-accuracy-drop", "100"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run named `run` of a short training on tiny data, beside its `data`."""
    folder = tmp_path_factory.mktemp("smaller")
    data = write(folder / "data", tiny_contents())
    options = ["--epochs", "8", "--batch-size", "8", "--learning-rate", "3e-3", "--seed", "5"]
    command = ["train", "--dataset", "mnist", "--data-dir", str(data), *options, "--output", str(folder / "run")]
    assert main(command) == 0
    return folder


@pytest.fixture
def inferd(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
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


def read(path: Path) -> dict[str, object]:
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document


def test_pruning_all_the_way(inferd: Callable[..., list[str]], folder: Path, tmp_path: Path) -> None:
    output, exported = tmp_path / "pruned", tmp_path / "export"
    options = ["--epochs", 3, "--batch-size", 8, "--steps", 2, "--seed", 1, *ANY_DROP]
    lines = inferd(
        "prune", folder / "run", "--output", output, "--sparsity", 0.75, "--multiple", 8, "--alpha", 0.5, *options
    )
    assert lines[:4] == [
        "conv1: 32 channels, 8 left",
        "conv2: 64 channels, 16 left",
        "dense: 128 channels, 32 left",
        "probabilities: as it was, its channels are an output of the model",
    ]
    assert lines[-1] == f"wrote {output}"
    assert sorted(path.name for path in output.iterdir()) == [
        "history.json",
        "learning-curves.png",
        "model.keras",
        "run.json",
        "smaller.json",
    ]
    report = json.loads((output / "smaller.json").read_text())
    assert report["before"]["parameters"] == 320 + 18496 + 204928 + 1290
    smaller = 8 * 10 + 16 * (9 * 8 + 1) + 32 * (25 * 16 + 1) + 10 * 33
    assert (report["after"]["parameters"], report["after"]["bytes"]) == (smaller, 4 * smaller)
    multiplications = 26 * 26 * 8 * 9 + 11 * 11 * 16 * 9 * 8 + 32 * 400 + 10 * 32
    assert (report["after"]["multiply_adds"], report["after"]["uncounted"]) == (multiplications, [])
    assert report["gate"] == {"max_accuracy_drop": 100.0, "passed": True, "reason": ""}
    assert report["comparison"]["examples"] == 24
    assert {"sparsity": 0.75, "multiple": 8, "alpha": 0.5}.items() <= report["settings"].items()
    assert report["settings"]["seed"] == 1
    (ancestor,) = report["lineage"]
    assert ancestor["method"] == "train"
    assert ancestor["model_sha256"] == json.loads((folder / "run" / "run.json").read_text())["model_sha256"]
    assert ancestor["settings"]["seed"] == 5

    # Everything that follows takes it for the run that it is, Keras alone too.
    assert keras.saving.load_model(output / "model.keras", custom_objects={}).count_params() == smaller
    inferd("evaluate", output)
    assert read(output / "metrics.json")["accuracy"] == report["after"]["test_accuracy"]
    inferd("export", output, "--output", exported)
    inferd("verify", exported, "--keras", output)
    proto = onnx.load(exported / "model.onnx")
    training = json.loads({entry.key: entry.value for entry in proto.metadata_props}[artefact.TRAINING_KEY])
    assert training["method"] == "prune"
    assert training["lineage"] == report["lineage"]
    assert str(folder).encode() not in (exported / "model.onnx").read_bytes()

    # And it has descendants, which know of both, and hold out the same images.
    inferd("finetune", output, "--output", tmp_path / "tuned", "--epochs", 1, *ANY_DROP)
    tuned = json.loads((tmp_path / "tuned" / "run.json").read_text())["training"]
    assert [entry["method"] for entry in tuned["lineage"]] == ["train", "prune"]
    assert tuned["split_seed"] == 5


def test_fine_tuning(inferd: Callable[..., list[str]], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned"
    lines = inferd("finetune", folder / "run", "--output", output, "--batch-size", 8, *ANY_DROP)
    assert lines[0] == "fine-tuned for INT8: conv1, conv2, dense, probabilities"
    assert lines[1].startswith("rounded to 8 bits: test accuracy ")
    report = json.loads((output / "smaller.json").read_text())
    assert report["after"]["parameters"] == report["before"]["parameters"]
    assert report["settings"]["epochs"] == 2
    assert report["settings"]["learning_rate"] == pytest.approx(2e-4)
    assert 0 <= report["rounded"]["after"]["test_accuracy"] <= 1
    inferd("export", output, "--output", tmp_path / "export")


def test_distilling(inferd: Callable[..., list[str]], folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    options = ["--epochs", 6, "--batch-size", 8, "--learning-rate", 3e-3, "--width", 0.25, "--multiple", 1, *ANY_DROP]
    lines = inferd("distill", folder / "run", "--output", output, *options)
    assert lines[0].startswith("the same student without its teacher: test accuracy ")
    report = json.loads((output / "smaller.json").read_text())
    assert report["after"]["parameters"] == 8 * 10 + 16 * 73 + 32 * 401 + 330
    assert report["baseline"]["parameters"] == report["after"]["parameters"]
    assert (report["settings"]["width"], report["settings"]["multiple"]) == (0.25, 1)
    # It is loaded by whoever has Keras and nothing of ours.
    assert (
        keras.saving.load_model(output / "model.keras", custom_objects={}).count_params()
        == report["after"]["parameters"]
    )
    # A bright square tells the class: it learns, which guessing (0.1) would not.
    assert report["after"]["test_accuracy"] > 0.5
    inferd("evaluate", output)

    options = ["--student", "cnn", "--epochs", 1, "--no-baseline", *ANY_DROP]
    lines = inferd("distill", folder / "run", "--output", output, *options)
    report = json.loads((output / "smaller.json").read_text())
    assert "baseline" not in report
    assert report["settings"]["student"] == "cnn"
    assert not (output / "metrics.json").exists()


def test_what_the_gate_refuses_is_not_written(
    inferd: Callable[..., list[str]], refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    # One step of training leaves a model that guesses.
    command = ["distill", folder / "run", "--output", tmp_path / "out", "--epochs", 1, "--no-baseline"]
    command += ["--batch-size", 64, "--learning-rate", 1e-9]
    line = refused(*command)
    assert "the accuracy falls by " in line
    assert "where at most 0.1 were allowed" in line
    assert line.endswith("nothing was written, which --keep would do all the same")
    assert list(tmp_path.iterdir()) == []

    lines = inferd(*command, "--keep")
    assert any(line.startswith("kept although the accuracy falls by ") for line in lines)
    report = json.loads((tmp_path / "out" / "smaller.json").read_text())
    assert report["gate"]["passed"] is False
    assert report["gate"]["reason"].startswith("the accuracy falls by ")
    # A refusal leaves an earlier run as it was.
    before = (tmp_path / "out" / "run.json").read_bytes()
    refused(*command)
    assert (tmp_path / "out" / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "{run}", "--sparsity", "1"], "the sparsity 1.0 was asked for: it must lie between 0 and 1"),
        (["prune", "{run}", "--sparsity", "nan"], "the sparsity nan was asked for"),
        (["prune", "{run}", "--sparsity", "0.01"], "takes no channel of layers with 32, 64, 128: ask for more, or for"),
        (["prune", "{run}", "--alpha", "-1"], "the weight -1.0 of the teacher"),
        (["prune", "{run}", "--steps", "9"], "9 steps in 5 epochs were asked for"),
        (["prune", "{run}", "--epochs", "0"], "0 epochs"),
        (["prune", "{run}", "--max-accuracy-drop", "nan"], "an accuracy drop of nan points was allowed"),
        (["prune", "{run}", "--seed", "-1"], "the seed -1"),
        (["prune", "{tmp}"], "is not a run folder"),
        (["prune", "{run}", "--data-dir", "{tmp}/nowhere"], "nowhere is not a folder"),
        (["prune", "{run}", "--data-dir", "{other}"], "are not those that"),
        (
            ["prune", "{run}", "--optimizer", "sgd", "--learning-rate", "1e30"],
            "not finite with the learning rate 1e+30: choose a lower one",
        ),
        (["finetune", "{run}", "--learning-rate", "-1"], "the learning rate -1.0"),
        (["distill", "{run}", "--width", "0"], "the width 0.0 was asked for"),
        (["distill", "{run}", "--student", "vit"], "'vit' is not a model family: choose from"),
        (["distill", "{run}", "--student", "lstm"], "the family 'lstm' takes text, and its teacher grey images"),
        (["distill", "{run}", "--student", "cnn", "--width", "0.5"], "--student and --width were both given"),
        (["distill", "{run}", "--temperature", "0"], "the temperature 0.0"),
        (["distill", "{run}", "--alpha", "2"], "the weight 2.0 of the teacher"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    places = {"run": folder / "run", "tmp": tmp_path, "other": write(tmp_path / "other", tiny_contents(seed=1))}
    line = refused(*(argument.format(**places) for argument in arguments), "--output", tmp_path / "out")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_something_else_are_left_alone(
    refused: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    assert "is the run that is made smaller" in refused("prune", folder / "run", "--output", folder / "run")
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds other files than an earlier training's" in refused("prune", folder / "run", "--output", tmp_path)


def test_runs_that_cannot_be_made_smaller(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    document = json.loads((run / "run.json").read_text())
    del document["training"]["settings"]
    (run / "run.json").write_text(json.dumps(document))
    assert "does not say by which seed" in refused("prune", run, "--output", tmp_path / "out")
    # A model that was put there instead.
    keras_models.dense().save(run / "model.keras")
    assert "is not the model that was trained there" in refused("prune", run, "--output", tmp_path / "out")
