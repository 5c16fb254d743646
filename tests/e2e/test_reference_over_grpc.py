"""The reference model, published and served for real: over gRPC it is as good as in Keras."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from inferd_client import Client
from inferd_training.data.dataset import Dataset
from inferd_training.data.datasets import load
from reference import ReferenceArtefact
from support.server import ServerProcess, serve

BAR = 0.90
ROWS = 250


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("fashion-mnist")


@pytest.fixture(scope="module")
def server(reference_artefact: ReferenceArtefact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("published")
    publish = ["publish", str(reference_artefact.export), "--repository", str(repository), "--name", "fashion"]
    subprocess.run([sys.executable, "-m", "inferd_protocol", *publish], check=True, capture_output=True)
    with serve(repository) as running:
        yield running


def in_keras(artefact: ReferenceArtefact) -> float:
    return float(json.loads((Path(artefact.run) / "metrics.json").read_text())["accuracy"])


def test_accuracy_over_grpc_is_keras_accuracy(
    server: ServerProcess, reference_artefact: ReferenceArtefact, data: Dataset
) -> None:
    batches = ({"image": data.test.inputs[start : start + ROWS]} for start in range(0, len(data.test.inputs), ROWS))
    with Client(server.address) as client:
        answers = [answer["probabilities"] for answer in client.infer_many("fashion", batches, concurrency=8)]
    right = int((np.concatenate(answers).argmax(axis=1) == data.test.truth).sum())
    assert len(data.test.inputs) == 10_000
    assert abs(right - round(in_keras(reference_artefact) * 10_000)) <= 1
    assert right >= BAR * 10_000


def test_one_image_at_a_time_and_a_batch_agree_through_tritonclient(server: ServerProcess, data: Dataset) -> None:
    def ask(client: triton.InferenceServerClient, images: np.ndarray) -> np.ndarray:
        tensor = triton.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images)
        return client.infer("fashion", [tensor]).as_numpy("probabilities")

    with triton.InferenceServerClient(server.address) as client:
        together = ask(client, data.test.inputs[:100])
        alone = np.concatenate([ask(client, data.test.inputs[index : index + 1]) for index in range(100)])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_a_picture_is_named_with_its_label(server: ServerProcess, data: Dataset) -> None:
    with Client(server.address) as client:
        answer = client.infer("fashion", {"image": data.test.inputs[:1]}, classification={"probabilities": 1})
    value, index, label = answer["probabilities"][0, 0].decode().split(":")
    assert label == data.labels[int(index)]
    assert 0.0 <= float(value) <= 1.0
