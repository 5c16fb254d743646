"""Models whose weights lie in a file beside them: served on both transports, refused where that file is not theirs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from inferd_client import Client, InferdError
from inferd_protocol.artefact import MODEL_FILE, REPORT_FILE, WEIGHTS_FILE
from inferd_server.config import Device
from inferd_server.errors import LoadError
from inferd_server.repository.scan import read_directory
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from inferd_training.files import sha256
from inferd_training.publish import publish
from support.server import ServerProcess, serve

from benchmarks import large_model

WIDTH = 64
X = np.random.default_rng(7).random((3, WIDTH), np.float32)
ATTACKS = {
    "parent": ("../../stolen", "lies in '../../stolen', expected a file below the model's own folder"),
    "absolute": ("/etc/passwd", "lies in '/etc/passwd', expected a file below the model's own folder"),
    "memory": ("*/_ORT_MEM_ADDR_/*", "expected a file below the model's own folder"),
    "link": ("link", "a link that leaves the model's folder"),
    "missing": ("nothing", "'nothing', which is missing beside it"),
    "short": ("short", "expected at least"),
}


def move(folder: Path, location: str) -> None:
    """Has the weights lie elsewhere."""
    proto = onnx.load(folder / MODEL_FILE, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())


@pytest.fixture(scope="module")
def weights_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    large_model.write(folder / "good" / "1", WIDTH)
    for name, (location, _) in ATTACKS.items():
        version = folder / name / "1"
        large_model.write(version, WIDTH)
        move(version, location)
    weights = folder / "good" / "1" / WEIGHTS_FILE
    # What the attacks would find, were they let through.
    shutil.copyfile(weights, folder / "stolen")
    (folder / "link" / "1" / "link").symlink_to(weights)
    (folder / "short" / "1" / "short").write_bytes(weights.read_bytes()[:-1])
    return folder


@pytest.fixture(scope="module")
def running(weights_repository: Path, transport: str) -> Iterator[ServerProcess]:
    with serve(weights_repository, "--transport", transport, "--instances", "2") as server:
        yield server


def test_it_answers(running: ServerProcess) -> None:
    with Client(running.address) as client:
        np.testing.assert_allclose(client.infer("good", {"x": X})["y"], large_model.expected(X), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_that_would_read_elsewhere_says_so_in_one_sentence(name: str, running: ServerProcess) -> None:
    with Client(running.address) as client:
        (entry,) = [entry for entry in client.repository_index() if entry.name == name]
        assert entry.state == "UNAVAILABLE"
        assert ATTACKS[name][1] in entry.reason
        assert "\n" not in entry.reason
        assert "pytest" not in entry.reason, "callers learn nothing of the server's folders"
        with pytest.raises(InferdError, match=f"{MODEL_FILE} is refused: "):
            client.infer(name, {"x": X})


def test_a_new_weights_file_is_a_new_version_of_the_files(tmp_path: Path) -> None:
    large_model.write(tmp_path / "m" / "1", WIDTH)
    before = read_directory(tmp_path / "m").fingerprint(1)
    assert f"1/{WEIGHTS_FILE}" in [name for name, *_ in before]
    other = tmp_path / "other"
    shutil.copyfile(tmp_path / "m" / "1" / WEIGHTS_FILE, other)
    other.rename(tmp_path / "m" / "1" / WEIGHTS_FILE)
    assert read_directory(tmp_path / "m").fingerprint(1) != before


def test_the_runtime_is_never_shown_a_model_that_is_refused(
    weights_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxRuntimeBackend(Device.CPU, 1)
    shown: list[object] = []
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *model, **_: shown.append(model))
    for name in ATTACKS:
        with pytest.raises(LoadError, match=r"^model\.onnx is refused: "):
            backend.load(weights_repository / name / "1" / MODEL_FILE)
    assert shown == []


def test_weights_that_the_model_does_not_measure_are_refused_by_the_runtime(tmp_path: Path) -> None:
    large_model.write(tmp_path, WIDTH)
    proto = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
    for tensor in proto.graph.initializer:
        kept = [entry for entry in tensor.external_data if entry.key != "length"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    (tmp_path / MODEL_FILE).write_bytes(proto.SerializeToString())
    os.truncate(tmp_path / WEIGHTS_FILE, 70_000)
    with pytest.raises(LoadError, match=r"model\.onnx is no model that ONNX Runtime"):
        OnnxRuntimeBackend(Device.CPU, 1).load(tmp_path / MODEL_FILE)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.disk_usage(tempfile.gettempdir()).free < large_model.NEEDS_DISK
    or large_model.free_memory() < large_model.NEEDS_MEMORY,
    reason="needs 6 GB of disk and 8 GB of memory",
)
def test_a_model_beyond_the_limit_of_protobuf_is_published_and_served(tmp_path: Path) -> None:
    export, repository = tmp_path / "export", tmp_path / "repository"
    try:
        assert large_model.write(export) > 2**31
        weights = {WEIGHTS_FILE: {"sha256": sha256(export / WEIGHTS_FILE)}}
        report = {"verified": True, "model": {"sha256": sha256(export / MODEL_FILE), "weights": weights}}
        (export / REPORT_FILE).write_text(json.dumps(report))
        publish(export, repository, large_model.NAME)
        shutil.rmtree(export)
        x = np.random.default_rng(3).random((1, large_model.WIDTH), np.float32)
        with serve(repository, "--instances", "2") as server, Client(server.address, timeout=60.0) as client:
            # One copy for both instances: the weights, and less than half of them for all else.
            assert large_model.memory([server.process.pid])["Pss"] < 1.5 * 2**31
            answer = client.infer(large_model.NAME, {"x": x})["y"]
        np.testing.assert_allclose(answer, large_model.expected(x), rtol=1e-2, atol=1e-3)
    finally:
        # pytest keeps the folders of its last runs, and these are large.
        shutil.rmtree(tmp_path)
