"""From the device an operator names to ONNX Runtime's execution providers."""

from __future__ import annotations

import onnxruntime as ort

from inferd_server.config import Device
from inferd_server.errors import ConfigurationError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


def providers(device: Device) -> list[str]:
    """The providers to ask for, in order.

    Raises ConfigurationError for `cuda` where the installed runtime was built without it.
    """
    cuda = CUDA_PROVIDER in ort.get_available_providers()
    if device is Device.CPU or (device is Device.AUTO and not cuda):
        return [CPU_PROVIDER]
    if not cuda:
        raise ConfigurationError(
            "--device cuda expects a runtime with CUDA, and the installed one has none: "
            "pip install 'inferd[gpu]' in an environment without 'onnxruntime', or use --device auto"
        )
    # The CUDA and cuDNN libraries come from the nvidia-* wheels beside the runtime, where they are not the system's.
    ort.preload_dlls()
    return [CUDA_PROVIDER, CPU_PROVIDER]
