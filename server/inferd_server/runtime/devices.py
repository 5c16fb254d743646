"""From the device an operator names to ONNX Runtime's execution providers.

The runtime itself falls back to the CPU where CUDA does not start, and says so only on stderr. So whether CUDA works is
found out here, once, before any model: what is asked for by name is had or refused, and a fallback is a warning.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from inferd_server.config import Device
from inferd_server.errors import ConfigurationError
from inferd_server.runtime.backend import CPU_PROVIDER

_LOG = logging.getLogger(__name__)

CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

_DRIVER = "libcuda.so.1"

_TENSORRT = "libnvinfer.so.10"
_TENSORRT_LIBRARIES = (_TENSORRT, "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
"""Those that the provider's library of ONNX Runtime 1.31 is linked with, each after what it needs."""

_SILENT = 4
"""Only what is fatal: the reason why CUDA does not start is reported by this module."""

_PROBE = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01pZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""The smallest model: y = Identity(x), FP32 of shape [1], IR version 8, opset 17."""


def providers(device: Device) -> list[str]:
    """The providers to ask for, in order; all of them work.

    `auto` takes CUDA where it works and never TensorRT, whose engines take minutes to build: that is asked for by name.
    What it takes is logged. Raises ConfigurationError for a named device that cannot be had.
    """
    if device is Device.CPU:
        return [CPU_PROVIDER]
    named = device is not Device.AUTO
    available = ort.get_available_providers()
    if CUDA_PROVIDER not in available:
        if named:
            raise ConfigurationError(
                f"--device {device} expects a runtime with CUDA, and the installed one has none: "
                "pip install 'inferd[gpu]' in an environment without 'onnxruntime', or use --device auto"
            )
        _LOG.info("--device auto takes the CPU: the installed runtime has no CUDA")
        return [CPU_PROVIDER]
    reason = _why_cuda_does_not_start()
    if reason is None:
        if device is Device.TENSORRT:
            _check_tensorrt(available)
            return [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER]
        _LOG.info("--device %s takes the GPU, with CUDA", device)
        return [CUDA_PROVIDER, CPU_PROVIDER]
    if named:
        raise ConfigurationError(f"--device {device} expects a GPU that works, and CUDA does not start: {reason}")
    _LOG.warning("models run on the CPU: the runtime has CUDA, but it does not start: %s", reason)
    return [CPU_PROVIDER]


def tensorrt_version() -> str:
    """The version of the TensorRT library, as one number; `unknown` where it does not say."""
    try:
        version = ctypes.CDLL(_TENSORRT).getInferLibVersion
    except (OSError, AttributeError):
        return "unknown"
    version.restype = ctypes.c_int32
    return str(version())


def _check_tensorrt(available: Sequence[str]) -> None:
    """Raises ConfigurationError where TensorRT cannot be had."""
    if TENSORRT_PROVIDER not in available:
        raise ConfigurationError(
            "--device tensorrt expects a runtime with TensorRT, and the installed one has none: use --device cuda"
        )
    try:
        _load_tensorrt()
    except OSError as missing:
        raise ConfigurationError(
            f"--device tensorrt expects the TensorRT libraries, and they are not found ({missing}): "
            "install TensorRT 10, or use --device cuda"
        ) from missing
    reason = _why_not_taken(TENSORRT_PROVIDER)
    if reason is not None:
        raise ConfigurationError(f"--device tensorrt expects TensorRT to start, and it does not: {reason}")


def _load_tensorrt() -> None:
    """Loads TensorRT from its wheel where that is installed, else from the system. Raises OSError."""
    wheel = importlib.util.find_spec("tensorrt_libs")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    for name in _TENSORRT_LIBRARIES:
        beside = [path for folder in folders if (path := Path(folder) / name).is_file()]
        # Global: the provider's library finds them by their names.
        ctypes.CDLL(str(beside[0]) if beside else name, ctypes.RTLD_GLOBAL)


def _why_cuda_does_not_start() -> str | None:
    """None where a number can be put on the first GPU, by driver, libraries and device, and a session takes it."""
    # The CUDA and cuDNN libraries come from the nvidia-* wheels beside the runtime, where they are not the system's.
    ort.preload_dlls()
    ort.set_default_logger_severity(_SILENT)
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except Exception as error:  # noqa: BLE001 - the runtime raises types of its own and RuntimeError
        try:
            ctypes.CDLL(_DRIVER)
        except OSError as missing:
            # The commonest reason, which the runtime's own error does not name.
            return f"no NVIDIA driver is here ({missing})"
        return _said(error)
    return _why_not_taken(CUDA_PROVIDER)


def _why_not_taken(provider: str) -> str | None:
    """None where a session that asks for the provider has it: the runtime may take another one without an error."""
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    try:
        with warnings.catch_warnings():
            # What they say is what is found out here.
            warnings.simplefilter("ignore")
            session = ort.InferenceSession(_PROBE, options, providers=[provider, CPU_PROVIDER], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - as above
        return _said(error)
    taken = session.get_providers()
    return None if provider in taken else f"ONNX Runtime took {', '.join(taken)} instead of {provider}"


def _said(error: Exception) -> str:
    # The runtime puts its own source files before what it says.
    return str(error).strip().rpartition(") ")[2] or type(error).__name__
