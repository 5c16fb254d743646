"""ONNX Runtime behind the backend interface: from a file and settings to a model on one device."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnxruntime as ort
from inferd_protocol.external_data import ExternalDataError, data_files

from inferd_server.config import Device
from inferd_server.errors import LoadError
from inferd_server.runtime import fingerprint, provider_options
from inferd_server.runtime.backend import (
    CPU_PROVIDER,
    DEFAULT_SETTINGS,
    GraphLevel,
    RuntimeModel,
    SessionSettings,
    Signature,
)
from inferd_server.runtime.choosing import SPINNING
from inferd_server.runtime.devices import CUDA_PROVIDER, TENSORRT_PROVIDER, providers, tensorrt_version
from inferd_server.runtime.gpu_model import GpuModel
from inferd_server.runtime.onnxruntime_model import OnnxRuntimeModel, signature_of
from inferd_server.runtime.options import RuntimeOptions
from inferd_server.runtime.tunable_model import TunableModel
from inferd_server.runtime.tuner import Tuner
from inferd_server.runtime.tuning_cache import TuningCache

_LOG = logging.getLogger(__name__)

_ERROR_SEVERITY = 3

_GRAPH_LEVELS = {
    GraphLevel.NONE: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    GraphLevel.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    GraphLevel.EXTENDED: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    GraphLevel.ALL: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

Provider = str | tuple[str, Mapping[str, str]]
"""As sessions take it: a name, with options where it has some."""


class OnnxRuntimeBackend:
    """Loads ONNX files into sessions on one device.

    Raises ConfigurationError where a device is named that cannot be had.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, device: Device, intra_op_threads: int, options: RuntimeOptions | None = None) -> None:
        self._asked = options or RuntimeOptions()
        self._providers = providers(device)
        self._threads = intra_op_threads
        # Sessions report their failures by exceptions; warnings on stderr would say it twice.
        ort.set_default_logger_severity(_ERROR_SEVERITY)
        # GPUs have no use for the CPU's options.
        tuned = self._asked.tune.on and not self.on_gpu
        self._tuner = Tuner(self._asked.tune, TuningCache(self._asked.cache)) if tuned else None
        if self._asked.tune.on and not tuned:
            _LOG.info("--tune on is for models on the CPU: on %s nothing is measured", self._providers[0])

    @property
    def on_gpu(self) -> bool:
        """Whether models run on a GPU."""
        return self._providers[0] != CPU_PROVIDER

    def load(self, path: Path, settings: SessionSettings = DEFAULT_SETTINGS) -> RuntimeModel:
        """Loads an ONNX file, and the files that it keeps weights in.

        Raises LoadError where it cannot be run on the device, or keeps weights where they cannot be, or must not be.
        """
        try:
            # Before the runtime opens anything: it would follow a model to any file of the machine.
            data_files(path)
        except ExternalDataError as error:
            raise LoadError(f"{path.name} is refused: {error}") from error
        except OSError as error:
            raise LoadError(f"{path.name} cannot be read: {error.strerror}") from error
        settings = self._completed(settings)
        if self._tuner:
            return TunableModel(path, settings, self._tuner, self._load_on_cpu)
        session, provider = self._session(path, settings)
        if provider == CPU_PROVIDER:
            return OnnxRuntimeModel(session, provider)
        return GpuModel(session, provider, self._asked.gpu)

    def _load_on_cpu(self, path: Path, settings: SessionSettings) -> OnnxRuntimeModel:
        return OnnxRuntimeModel(*self._session(path, settings))

    def _session(self, path: Path, settings: SessionSettings) -> tuple[ort.InferenceSession, str]:
        """The session and the provider that it really has. Raises LoadError."""
        try:
            # The runtime's own fallback would print and go on with the CPU.
            session = ort.InferenceSession(
                str(path),
                self._options(settings),
                providers=self._with_options(path, settings),
                enable_fallback=0,
            )
        except LoadError:
            raise
        except Exception as error:
            raise _no_model(path, error) from error
        provider = session.get_providers()[0]
        if provider != self._providers[0]:
            raise LoadError(f"{self._providers[0]} was asked for, and the runtime took {provider}")
        return session, provider

    def _completed(self, settings: SessionSettings) -> SessionSettings:
        """The settings with what the server decides where a model does not."""
        return replace(
            settings,
            intra_op_threads=settings.intra_op_threads or self._threads,
        )

    def _options(self, settings: SessionSettings) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.intra_op_threads
        options.inter_op_num_threads = settings.inter_op_threads
        options.execution_mode = (
            ort.ExecutionMode.ORT_PARALLEL if settings.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
        )
        options.enable_cpu_mem_arena = settings.memory_arena
        options.enable_mem_pattern = settings.memory_pattern
        options.graph_optimization_level = _GRAPH_LEVELS[settings.graph_level]
        options.log_severity_level = _ERROR_SEVERITY
        # Threads that spin for work take the CPU from the threads that decode and answer.
        entries: Mapping[str, str] = {SPINNING: "0", **settings.entries}
        if self.on_gpu:
            entries = provider_options.session_entries(self._asked.gpu, entries)
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return options

    def _with_options(self, path: Path, settings: SessionSettings) -> list[Provider]:
        gpu = self._asked.gpu
        made: list[Provider] = []
        for name in self._providers:
            if name == CUDA_PROVIDER:
                made.append((name, provider_options.cuda(gpu)))
            elif name == TENSORRT_PROVIDER:
                made.append((name, self._tensorrt(path, settings)))
            else:
                made.append(name)
        return made

    def _tensorrt(self, path: Path, settings: SessionSettings) -> Mapping[str, str]:
        folder = self._asked.cache / "tensorrt" / fingerprint.gpu_model().replace("/", "-").replace(" ", "-")
        precision = self._asked.gpu.tensorrt_precision
        try:
            folder.mkdir(parents=True, exist_ok=True)
            prefix = provider_options.engine_prefix(
                fingerprint.sha256(path), ort.__version__, tensorrt_version(), precision
            )
        except OSError as error:
            raise LoadError(f"TensorRT needs a folder that can be written, see --cache-dir: {error}") from error
        return provider_options.tensorrt(self._asked.gpu, folder, prefix, _signature(path), settings.most_rows)


def _signature(path: Path) -> Signature:
    """Of a file, by the cheapest session there is: engines must know their shapes before they are built."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return signature_of(ort.InferenceSession(str(path), options, providers=[CPU_PROVIDER]))
    except LoadError:
        raise
    except Exception as error:
        raise _no_model(path, error) from error


def _no_model(path: Path, error: Exception) -> LoadError:
    # The reason travels to callers, whom the server's folders do not concern.
    why = str(error).replace(str(path), path.name)
    return LoadError(f"{path.name} is no model that ONNX Runtime {ort.__version__} can load: {why}")
