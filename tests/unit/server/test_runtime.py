"""ONNX Runtime behind the interface, and what warm-up finds out about real models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from inferd_protocol.datatypes import BF16, BY_NAME, BYTES
from inferd_protocol.tensors import bf16_bits, bf16_values
from inferd_server.config import Device
from inferd_server.errors import ConfigurationError, InvalidRequest, LoadError, RuntimeFailure
from inferd_server.repository import model_config
from inferd_server.repository.servable import read_labels
from inferd_server.repository.warm_up import rows_are_independent, warm_up
from inferd_server.runtime import devices
from inferd_server.runtime.backend import RuntimeModel, Signature, TensorSpec
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from inferd_server.runtime.resources import available_cpus
from onnx import TensorProto
from support import models


def load(tmp_path: Path, made: onnx.ModelProto, device: Device = Device.CPU) -> RuntimeModel:
    return OnnxRuntimeBackend(device, intra_op_threads=1).load(models.write(tmp_path, "m", made))


def test_the_signature_is_the_files(tmp_path: Path) -> None:
    loaded = load(tmp_path, models.classifier())
    (image,) = loaded.signature.inputs
    assert (image.name, image.datatype, image.shape) == ("image", BY_NAME["UINT8"], ("batch", 4, 4, 1))
    assert read_labels(loaded.signature, model_config.DeclaredConfig()) == {"probabilities": models.CLASSES}
    assert loaded.provider == "CPUExecutionProvider"


def test_a_run_answers_what_numpy_answers(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    (probabilities,) = load(tmp_path, models.classifier()).run([images])
    np.testing.assert_allclose(probabilities, models.classify(images), rtol=1e-5)


def test_bf16_goes_through_bit_by_bit(tmp_path: Path) -> None:
    loaded = load(tmp_path, models.identity(TensorProto.BFLOAT16))
    assert loaded.signature.inputs[0].datatype is BF16
    bits = bf16_bits(np.array([[1.5, -0.0, np.inf]], np.float32))
    (answer,) = loaded.run([bits])
    assert answer.tolist() == bits.tolist()
    assert bf16_values(answer).tolist() == [[1.5, -0.0, np.inf]]


def test_strings_go_through_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    loaded = load(tmp_path, models.identity(TensorProto.STRING, ("batch", 1)))
    assert loaded.signature.inputs[0].datatype is BYTES
    (answer,) = loaded.run([np.array([["é".encode()], [b""]], object)])
    assert answer.tolist() == [["é"], [""]]
    with pytest.raises(InvalidRequest, match="'x': element 1 is expected to be UTF-8"):
        loaded.run([np.array([[b"ok"], [b"\xff"]], object)])


def test_what_the_graph_refuses_is_the_requests_fault(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="out of data bounds"):
        load(tmp_path, models.embedding()).run([np.full((1, 3), 99, np.int64)])


def test_a_closed_model_does_not_run(tmp_path: Path) -> None:
    loaded = load(tmp_path, models.classifier())
    loaded.close()
    with pytest.raises(RuntimeFailure, match="unloaded"):
        loaded.run([np.zeros((1, 4, 4, 1), np.uint8)])


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\x07"])
def test_a_foreign_file_is_refused_without_the_servers_folders(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="is no model that ONNX Runtime") as caught:
        OnnxRuntimeBackend(Device.CPU, 1).load(path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this runtime has CUDA")
def test_cuda_is_refused_where_the_runtime_has_none() -> None:
    with pytest.raises(ConfigurationError, match=r"pip install 'inferd\[gpu\]'"):
        OnnxRuntimeBackend(Device.CUDA, 1)


class CudaWithout:
    """What ONNX Runtime's CUDA build says on a machine without a GPU (as 1.31 was seen to)."""

    __version__ = onnxruntime.__version__

    def __init__(self) -> None:
        self.OrtValue = self

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        pass

    def set_default_logger_severity(self, severity: int) -> None:
        pass

    def ortvalue_from_shape_and_type(self, *_: object) -> None:
        raise RuntimeError("/src/bridge.cc:2465 GetProviderInfo_CUDA() CUDA Provider not available")


def test_cuda_that_does_not_start_is_refused_by_name_and_a_warning_under_auto(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "ort", CudaWithout())
    monkeypatch.setattr(devices, "_DRIVER", None)  # the process itself: a library that is there
    with pytest.raises(ConfigurationError, match="CUDA does not start: CUDA Provider not available"):
        devices.providers(Device.CUDA)
    assert not caplog.records
    assert devices.providers(Device.AUTO) == ["CPUExecutionProvider"]
    assert "models run on the CPU" in caplog.text
    assert devices.providers(Device.CPU) == ["CPUExecutionProvider"]


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "ort", CudaWithout())
    monkeypatch.setattr(devices, "_DRIVER", "libinferd-no-such-driver.so.1")
    with pytest.raises(ConfigurationError, match=r"no NVIDIA driver is here \(libinferd-no-such-driver"):
        devices.providers(Device.CUDA)


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="no CUDA here")
@pytest.mark.parametrize("device", [Device.AUTO, Device.CUDA])
def test_cuda_answers_what_the_cpu_answers(tmp_path: Path, device: Device) -> None:
    loaded = load(tmp_path, models.classifier(), device)
    assert loaded.provider == "CUDAExecutionProvider"
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    np.testing.assert_allclose(loaded.run([images])[0], models.classify(images), rtol=1e-4)


@pytest.mark.parametrize(
    ("made", "independent"),
    [
        (models.classifier(), True),
        (models.sum_and_difference(), True),
        (models.ragged(), True),
        (models.embedding(vocabulary=2), True),
        (models.identity(TensorProto.STRING), True),
        (models.identity(TensorProto.BFLOAT16), True),
        (models.batch_mean(), False),
    ],
    ids=["classifier", "two inputs", "ragged", "embedding", "strings", "bf16", "batch mean"],
)
def test_only_models_with_independent_rows_are_batched(
    tmp_path: Path, made: onnx.ModelProto, independent: bool
) -> None:
    loaded = load(tmp_path, made)
    assert model_config.has_batch_axis(loaded.signature)
    assert rows_are_independent(loaded) is independent


def test_warm_up_runs_every_power_of_two_and_the_limit() -> None:
    class Counting:
        signature = Signature((TensorSpec("x", BY_NAME["FP32"], ("batch", 2)),), (), {})
        rows: list[int] = []  # noqa: RUF012 - one test, one instance

        def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
            self.rows.append(len(inputs[0]))
            return []

    counting = Counting()
    warm_up(counting, 48)  # type: ignore[arg-type]
    assert counting.rows == [1, 2, 4, 8, 16, 32, 48]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "no JSON object"),
        ("{", "no JSON object"),
        ('{"z": []}', "names output 'z'"),
        ('{"probabilities": ["one"]}', "1 labels for the 3 elements"),
    ],
)
def test_labels_that_do_not_fit_fail_the_load(tmp_path: Path, text: str, message: str) -> None:
    loaded = load(tmp_path, models.classifier({"inferd.labels": text}))
    with pytest.raises(LoadError, match=message):
        read_labels(loaded.signature, model_config.DeclaredConfig())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_cpus_are_those_of_the_cgroup(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    everything = available_cpus(tmp_path / "nothing")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cpus(tmp_path) == (expected or everything)
