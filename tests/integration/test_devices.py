"""Devices and tuning of a real server: what is named is had or refused, and every view names the same provider."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from inferd_client import Client
from support import models
from support.server import serve

without_gpu_runtime = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this runtime has CUDA"
)


@without_gpu_runtime
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_named_device_that_is_not_there_ends_the_start_in_a_sentence(
    tmp_path: Path, device: str, workers: str
) -> None:
    models.write(tmp_path, "classifier", models.classifier())
    command = [sys.executable, "-m", "inferd_protocol", "serve", "--model-repository", str(tmp_path)]
    flags = ["--device", device, "--grpc-port", "0", "--metrics-port", "off", "--workers", workers]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count(f"--device {device} expects a runtime with CUDA") == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_view_names_the_provider_that_runs_the_model(tmp_path: Path) -> None:
    models.write(tmp_path, "classifier", models.classifier())
    with serve(tmp_path, "--device", "cpu") as server, Client(server.address) as client:
        assert client.model_config("classifier").provider == "CPUExecutionProvider"
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics") as answer:
            metrics = answer.read().decode()
        assert 'provider="CPUExecutionProvider"' in metrics
        command = [sys.executable, "-m", "inferd_protocol", "models", "--server", server.address, "--json"]
        listed = subprocess.run([*command, "--interval", "0"], capture_output=True, text=True, check=True, timeout=60)
        assert [row["provider"] for row in json.loads(listed.stdout)] == ["CPUExecutionProvider"]


@without_gpu_runtime
def test_auto_says_that_it_took_the_cpu(tmp_path: Path) -> None:
    models.write(tmp_path, "classifier", models.classifier())
    with serve(tmp_path) as server:
        assert any("--device auto takes the CPU" in str(line.get("message")) for line in server.lines)


def test_a_tuned_server_says_what_it_chose_and_the_next_start_measures_nothing(tmp_path: Path) -> None:
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    models.write(repository, "classifier", models.classifier())
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    said = []
    for how in ("measured", "found earlier"):
        flags = ("--device", "cpu", "--tune", "on", "--tune-secs", "60", "--cache-dir", str(cache))
        with serve(repository, *flags) as server, triton.InferenceServerClient(server.address) as client:
            messages = [str(line.get("message")) for line in server.lines]
            assert any(f"classifier/1/model.onnx runs with session options {how}: " in each for each in messages)
            said.append(client.get_model_config("classifier").config.parameters["tuned"].string_value)
            with Client(server.address) as ours:
                answer = ours.infer("classifier", {"image": images})["probabilities"]
                np.testing.assert_allclose(answer, models.classify(images), rtol=1e-5)
    assert said[0] == said[1] != ""
    assert len(list((cache / "tuning").glob("*.json"))) == 1


def test_workers_measure_once(tmp_path: Path) -> None:
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    models.write(repository, "classifier", models.classifier())
    flags = ("--tune", "on", "--tune-secs", "60", "--cache-dir", str(cache), "--workers", "2", "--device", "cpu")
    with serve(repository, *flags):
        assert len(list((cache / "tuning").glob("*.json"))) == 1
