"""The reference CNN on the real Fashion-MNIST, by the commands alone: it meets the bar, and the artefact does too."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from inferd_protocol import artefact
from inferd_training.data.datasets import load
from PIL import Image
from reference import ReferenceArtefact

pytestmark = [pytest.mark.xdist_group("reference"), pytest.mark.slow]


def test_the_model_meets_the_bar(reference_artefact: ReferenceArtefact) -> None:
    metrics = json.loads((reference_artefact.run / "metrics.json").read_text())
    assert metrics["examples"] == 10_000
    assert metrics["accuracy"] >= 0.90
    assert len(metrics["classes"]) == 10
    assert np.array(metrics["confusion"]).trace() == pytest.approx(metrics["accuracy"] * 10_000)
    history = json.loads((reference_artefact.run / "history.json").read_text())
    assert len(history["loss"]) == 5
    assert history["loss"][-1] < history["loss"][0]


def test_the_plots_are_images(reference_artefact: ReferenceArtefact) -> None:
    for name in ("learning-curves.png", "confusion-matrix.png"):
        with Image.open(reference_artefact.run / name) as image:
            assert image.format == "PNG"


def test_the_artefact_answers_as_well_on_pixels(reference_artefact: ReferenceArtefact) -> None:
    # By ONNX Runtime and numpy alone, so that no code of the export's judges the export.
    session = ort.InferenceSession(reference_artefact.export / artefact.MODEL_FILE, providers=["CPUExecutionProvider"])
    (image,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 28, 28, 1])
    assert (probabilities.name, probabilities.shape) == ("probabilities", ["batch", 10])
    data = load("fashion-mnist")
    (answers,) = session.run(None, {"image": data.test.inputs})
    accuracy = (answers.argmax(axis=1) == data.test.truth).mean()
    assert accuracy >= 0.90
    report = json.loads((reference_artefact.export / artefact.REPORT_FILE).read_text())
    assert report["metrics"]["onnx_accuracy"] == pytest.approx(accuracy)
    labels = json.loads(session.get_modelmeta().custom_metadata_map[artefact.LABELS_KEY])
    assert labels["probabilities"][9] == "Ankle boot"


def test_the_report_shows_parity_on_the_whole_test_set(reference_artefact: ReferenceArtefact) -> None:
    report = json.loads((reference_artefact.export / artefact.REPORT_FILE).read_text())
    assert report["verified"] is True
    figures = {figure["batch"]: figure for figure in report["parity"]["figures"]}
    assert sorted(figures) == [1, 2, 7, 64]
    assert figures[64]["rows"] == 10_000
    assert all(figure["max_absolute_error"] <= 1e-5 for figure in figures.values())
    assert all(figure["top1_agreement"] >= 0.999 for figure in figures.values())
    assert report["model"]["loops"] == []


def test_it_is_published(reference_artefact: ReferenceArtefact, tmp_path: Path) -> None:
    inferd = Path(sys.executable).with_name("inferd")
    command = [inferd, "publish", reference_artefact.export, "--repository", tmp_path, "--name", "fashion-mnist"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "fashion-mnist" / "1" / artefact.MODEL_FILE).is_file()
