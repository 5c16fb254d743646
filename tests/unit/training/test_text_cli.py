"""The commands on texts: the whole way on tiny data of the user's own, and data that do not fit a family."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from inferd_protocol import artefact
from inferd_protocol.command import main
from inferd_training import runs
from inferd_training.data.tokens import encode
from inferd_training.files import sha256
from tiny_data import write
from tiny_texts import tiny_texts


@pytest.fixture
def inferd(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command; gives its output where it succeeds, and the one line that it says where it fails."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return output.out if status == 0 else output.err.splitlines()[-1]

    return run


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write(tmp_path / "data", tiny_texts(validation=8))


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_the_whole_way(family: str, inferd: Callable[..., str], texts: Path, tmp_path: Path) -> None:
    run, exported = tmp_path / "run", tmp_path / "export"
    lines = inferd("data", "--dataset", "text", "--data-dir", texts).splitlines()
    assert lines[:2] == [
        "text from the user's own files",
        "40 training passages, 8 validation passages, 16 test passages, 2 classes",
    ]
    assert len(lines) == 5

    training = ["--dataset", "text", "--data-dir", texts, "--family", family, "--epochs", 1, "--batch-size", 40]
    assert f"wrote {run}" in inferd("train", *training, "--output", run)
    assert "accuracy" in inferd("evaluate", run)
    printed = inferd("export", run, "--output", exported)
    assert "inputs: tokens tensor(int32)" in printed
    assert f"verified, wrote {exported}" in printed
    assert "slow:" not in printed

    report = json.loads((exported / artefact.REPORT_FILE).read_text())
    assert report["parity"]["samples"] == "the 16 test passages of text"
    assert [figure["batch"] for figure in report["parity"]["figures"]] == [1, 2, 7, 64]
    metadata = {
        entry.key: json.loads(entry.value) for entry in onnx.load(exported / artefact.MODEL_FILE).metadata_props
    }
    assert metadata[artefact.LABELS_KEY] == {"probabilities": ["German", "Spanish"]}
    assert metadata[artefact.TOKENISER_KEY]["tokens"]["encoding"] == "utf-8"
    assert report["tokeniser"] == metadata[artefact.TOKENISER_KEY]
    assert artefact.PREPROCESSING_KEY not in metadata
    assert metadata[artefact.TRAINING_KEY]["family"] == family
    assert sorted(metadata[artefact.DATA_KEY]["sha256"]) == ["test.tsv", "train.tsv", "validation.tsv"]
    session = ort.InferenceSession(exported / artefact.MODEL_FILE, providers=["CPUExecutionProvider"])
    (answers,) = session.run(None, {"tokens": np.stack([encode("der Name"), encode(""), encode("x" * 300)])})
    assert answers.shape == (3, 2)

    assert "compared with Keras" in inferd("verify", exported, "--keras", run)
    published = inferd("publish", exported, "--repository", tmp_path / "models", "--name", "language")
    assert published == f"published {tmp_path / 'models' / 'language' / '1'}\n"

    other = write(tmp_path / "other", tiny_texts(validation=8, seed=1))
    assert "are not those that" in inferd("export", run, "--data-dir", other, "--output", tmp_path / "other-export")


@pytest.mark.parametrize(
    ("dataset", "family", "message"),
    [
        (
            "manpages",
            "cnn",
            "the family 'cnn' takes grey images of 28x28 pixels, and 'manpages' is text: choose --family transformer "
            "or lstm, or --dataset mnist or fashion-mnist",
        ),
        (
            "fashion-mnist",
            "lstm",
            "the family 'lstm' takes text, and 'fashion-mnist' is grey images of 28x28 pixels: choose --family cnn, or "
            "--dataset manpages or text",
        ),
    ],
)
def test_data_of_another_kind_are_refused_before_they_are_fetched(
    dataset: str, family: str, message: str, inferd: Callable[..., str], tmp_path: Path
) -> None:
    line = inferd("train", "--dataset", dataset, "--family", family, "--output", tmp_path / "run")
    assert line == f"inferd train: {message}"
    assert not (tmp_path / "cache").exists()


def test_a_run_of_before_there_were_texts_is_still_read(tmp_path: Path) -> None:
    run = write(tmp_path / "run", {runs.MODEL: b"a model"})
    document = {
        "model_sha256": sha256(run / runs.MODEL),
        "dataset": "mnist",
        "data_folder": None,
        "labels": {"probabilities": ["0", "1"]},
        "preprocessing": {"image": {"dtype": "uint8", "scale": 1.0, "offset": 0.0}},
        "training": {},
        "data": {},
    }
    (run / runs.RUN).write_text(json.dumps(document))
    assert runs.load(run).tokeniser == {}
