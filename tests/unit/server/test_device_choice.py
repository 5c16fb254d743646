"""Which device a name leads to, on runtimes that this machine may not have."""

from __future__ import annotations

import ctypes
import logging

import onnxruntime
import pytest
from inferd_server.config import Device
from inferd_server.errors import ConfigurationError
from inferd_server.runtime import devices

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class Runtime:
    """ONNX Runtime with some providers, on a machine whose GPU works."""

    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, *available: str, lacks: str = "") -> None:
        self._available = [*available, CPU]
        self._lacks = lacks
        self.OrtValue = self

    def get_available_providers(self) -> list[str]:
        return self._available

    def preload_dlls(self) -> None:
        pass

    def set_default_logger_severity(self, severity: int) -> None:
        pass

    def ortvalue_from_shape_and_type(self, *_: object) -> None:
        pass

    def InferenceSession(self, model: bytes, options: object, providers: list[str], **more: object) -> Runtime:
        onnxruntime.InferenceSession(model, options, providers=[CPU])  # the model is one
        self._taken = [name for name in providers if name != self._lacks]
        return self

    def get_providers(self) -> list[str]:
        return self._taken


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> object:
    caplog.set_level(logging.INFO)
    return lambda *available: monkeypatch.setattr(devices, "ort", Runtime(*available))


@pytest.mark.parametrize("device", [Device.CUDA, Device.TENSORRT])
def test_a_named_device_is_never_replaced(has: object, device: Device) -> None:
    has()  # type: ignore[operator]
    with pytest.raises(ConfigurationError, match=rf"--device {device} expects a runtime with CUDA") as refused:
        devices.providers(device)
    assert "\n" not in str(refused.value)


def test_auto_says_what_it_takes(has: object, caplog: pytest.LogCaptureFixture) -> None:
    has()  # type: ignore[operator]
    assert devices.providers(Device.AUTO) == [CPU]
    assert "--device auto takes the CPU: the installed runtime has no CUDA" in caplog.text
    has(TENSORRT, CUDA)  # type: ignore[operator]
    assert devices.providers(Device.AUTO) == [CUDA, CPU]
    assert "--device auto takes the GPU, with CUDA" in caplog.text
    assert devices.providers(Device.CPU) == [CPU]


def test_tensorrt_needs_a_runtime_that_has_it(has: object) -> None:
    has(CUDA)  # type: ignore[operator]
    with pytest.raises(ConfigurationError, match="expects a runtime with TensorRT, and the installed one has none"):
        devices.providers(Device.TENSORRT)


def test_tensorrt_needs_its_libraries(has: object, monkeypatch: pytest.MonkeyPatch) -> None:
    has(TENSORRT, CUDA)  # type: ignore[operator]
    monkeypatch.setattr(devices, "_TENSORRT_LIBRARIES", ("libinferd-no-such-library.so",))
    with pytest.raises(ConfigurationError, match=r"not found \(libinferd-no-such-library\.so.*use --device cuda"):
        devices.providers(Device.TENSORRT)


def test_tensorrt_goes_before_cuda_where_all_is_there(has: object, monkeypatch: pytest.MonkeyPatch) -> None:
    has(TENSORRT, CUDA)  # type: ignore[operator]
    monkeypatch.setattr(devices, "_TENSORRT_LIBRARIES", (None,))
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda _: None)
    assert devices.providers(Device.TENSORRT) == [TENSORRT, CUDA, CPU]


def test_the_version_of_tensorrt_is_its_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_TENSORRT", "libinferd-no-such-library.so")
    assert devices.tensorrt_version() == "unknown"
    # A library that is there and has no such function: this process itself.
    monkeypatch.setattr(devices, "_TENSORRT", None)
    assert not hasattr(ctypes.CDLL(None), "getInferLibVersion")
    assert devices.tensorrt_version() == "unknown"


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this runtime has CUDA")
def test_a_silent_fallback_of_a_session_is_seen() -> None:
    assert devices._why_not_taken(CPU) is None
    assert devices._why_not_taken(CUDA) == f"ONNX Runtime took {CPU} instead of {CUDA}"


def test_a_named_device_that_sessions_do_not_take_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "ort", Runtime(TENSORRT, CUDA, lacks=CUDA))
    with pytest.raises(ConfigurationError, match=f"CUDA does not start: ONNX Runtime took {CPU} instead of {CUDA}"):
        devices.providers(Device.CUDA)
    assert devices.providers(Device.AUTO) == [CPU]
    assert "models run on the CPU" in caplog.text
    monkeypatch.setattr(devices, "ort", Runtime(TENSORRT, CUDA, lacks=TENSORRT))
    monkeypatch.setattr(devices, "_load_tensorrt", lambda: None)
    with pytest.raises(
        ConfigurationError, match=f"TensorRT to start, and it does not: ONNX Runtime took {CPU} instead"
    ):
        devices.providers(Device.TENSORRT)
