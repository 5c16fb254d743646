"""From the device an operator names to ONNX Runtime's execution providers.

The runtime itself falls back to the CPU where CUDA does not start, and says so only on stderr. So whether CUDA works is
found out here, once, before any model: what is asked for by name is had or refused, and a fallback is a warning.
"""

from __future__ import annotations

import ctypes
import logging

import numpy as np
import onnxruntime as ort

from inferd_server.config import Device
from inferd_server.errors import ConfigurationError
from inferd_server.runtime.backend import CPU_PROVIDER

_LOG = logging.getLogger(__name__)

CUDA_PROVIDER = "CUDAExecutionProvider"

_DRIVER = "libcuda.so.1"

_SILENT = 4
"""Only what is fatal: the reason why CUDA does not start is reported by this module."""


def providers(device: Device) -> list[str]:
    """The providers to ask for, in order; all of them work.

    Raises ConfigurationError for `cuda` where CUDA cannot be had.
    """
    if device is Device.CPU:
        return [CPU_PROVIDER]
    if CUDA_PROVIDER not in ort.get_available_providers():
        if device is Device.CUDA:
            raise ConfigurationError(
                "--device cuda expects a runtime with CUDA, and the installed one has none: "
                "pip install 'inferd[gpu]' in an environment without 'onnxruntime', or use --device auto"
            )
        return [CPU_PROVIDER]
    reason = _why_cuda_does_not_start()
    if reason is None:
        return [CUDA_PROVIDER, CPU_PROVIDER]
    if device is Device.CUDA:
        raise ConfigurationError(f"--device cuda expects a GPU that works, and CUDA does not start: {reason}")
    _LOG.warning("models run on the CPU: the runtime has CUDA, but it does not start: %s", reason)
    return [CPU_PROVIDER]


def _why_cuda_does_not_start() -> str | None:
    """None where one number can be put on the first GPU: the smallest thing that needs driver, libraries and device."""
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
        # The runtime puts its own source files before what it says.
        return str(error).strip().rpartition(") ")[2] or type(error).__name__
    return None
