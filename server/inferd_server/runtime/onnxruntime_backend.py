"""ONNX Runtime behind the backend interface."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from inferd_protocol.datatypes import BF16, BY_ONNX, BYTES
from inferd_protocol.external_data import ExternalDataError, data_files
from inferd_protocol.tensors import Tensor
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from inferd_server.config import Device
from inferd_server.errors import InvalidRequest, LoadError, RuntimeFailure
from inferd_server.runtime.backend import (
    DEFAULT_SETTINGS,
    GraphLevel,
    RuntimeModel,
    SessionSettings,
    Signature,
    TensorSpec,
)
from inferd_server.runtime.devices import providers

_ERROR_SEVERITY = 3
_ONNX_BFLOAT16 = 16
"""TensorProto.DataType.BFLOAT16."""

_GRAPH_LEVELS = {
    GraphLevel.NONE: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    GraphLevel.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    GraphLevel.EXTENDED: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    GraphLevel.ALL: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class OnnxRuntimeBackend:
    """Loads ONNX files into sessions on one device.

    Raises ConfigurationError where a device is named that cannot be had.
    """

    platform = "onnxruntime_onnx"

    def __init__(self, device: Device, intra_op_threads: int) -> None:
        self._providers = providers(device)
        self._threads = intra_op_threads
        # Sessions report their failures by exceptions; warnings on stderr would say it twice.
        ort.set_default_logger_severity(_ERROR_SEVERITY)

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
        options = self._options(settings)
        try:
            # The runtime's own fallback would print and go on with the CPU.
            session = ort.InferenceSession(str(path), options, providers=self._providers, enable_fallback=0)
        except Exception as error:
            # The reason travels to callers, whom the server's folders do not concern.
            why = str(error).replace(str(path), path.name)
            raise LoadError(f"{path.name} is no model that ONNX Runtime {ort.__version__} can load: {why}") from error
        provider = session.get_providers()[0]
        if provider != self._providers[0]:
            raise LoadError(f"{self._providers[0]} was asked for, and the runtime took {provider}")
        return OnnxRuntimeModel(session, provider)

    def _options(self, settings: SessionSettings) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.intra_op_threads or self._threads
        options.inter_op_num_threads = settings.inter_op_threads
        options.execution_mode = (
            ort.ExecutionMode.ORT_PARALLEL if settings.parallel else ort.ExecutionMode.ORT_SEQUENTIAL
        )
        options.enable_cpu_mem_arena = settings.memory_arena
        options.enable_mem_pattern = settings.memory_pattern
        options.graph_optimization_level = _GRAPH_LEVELS[settings.graph_level]
        options.log_severity_level = _ERROR_SEVERITY
        # Threads that spin for work take the CPU from the threads that decode and answer.
        entries = {"session.intra_op.allow_spinning": "0", **settings.entries}
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        return options


class OnnxRuntimeModel:
    """A session. Runs from any number of threads at once."""

    def __init__(self, session: ort.InferenceSession, provider: str) -> None:
        self.provider = provider
        self.signature = Signature(
            inputs=tuple(_spec(node) for node in session.get_inputs()),
            outputs=tuple(_spec(node) for node in session.get_outputs()),
            metadata=dict(session.get_modelmeta().custom_metadata_map),
        )
        self._session: ort.InferenceSession | None = session
        self._input_names = [spec.name for spec in self.signature.inputs]
        self._output_names = [spec.name for spec in self.signature.outputs]
        datatypes = {spec.datatype for spec in self.signature.inputs + self.signature.outputs}
        self._has_bf16 = BF16 in datatypes
        self._texts = [index for index, spec in enumerate(self.signature.inputs) if spec.datatype is BYTES]
        if self._has_bf16 and BYTES in datatypes:
            raise LoadError("the model has both BF16 and string tensors, which the runtime cannot pass together")

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the session; the GIL is released meanwhile. Raises as `RuntimeModel.run` says."""
        session = self._session
        if session is None:
            raise RuntimeFailure("the model has been unloaded")
        try:
            if self._has_bf16:
                return self._run_values(session, inputs)
            if self._texts:
                inputs = self._with_texts(inputs)
            feeds = dict(zip(self._input_names, inputs, strict=True))
            outputs: list[Tensor] = session.run(self._output_names, feeds)
        except ort_state.InvalidArgument as error:
            # An index out of range, shapes that do not go together: what only the graph itself can tell.
            raise InvalidRequest(f"the model refuses the inputs: {error}") from error
        except (InvalidRequest, RuntimeFailure):
            raise
        except Exception as error:
            raise RuntimeFailure(f"the model failed to run: {error}") from error
        return outputs

    def close(self) -> None:
        """Frees the session."""
        self._session = None

    def _with_texts(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = list(inputs)
        for index in self._texts:
            arrays[index] = _text(self._input_names[index], arrays[index])
        return arrays

    def _run_values(self, session: ort.InferenceSession, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs on the runtime's own values: numpy has no BF16."""
        feeds = {}
        held = [np.ascontiguousarray(array) for array in inputs]  # the runtime reads their memory until the run ends
        for spec, array in zip(self.signature.inputs, held, strict=True):
            if spec.datatype is BF16:
                feeds[spec.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            else:
                feeds[spec.name] = ort.OrtValue.ortvalue_from_numpy(array)
        values = session.run_with_ort_values(self._output_names, feeds)
        return [
            _bf16_bits(value) if spec.datatype is BF16 else value.numpy()
            for spec, value in zip(self.signature.outputs, values, strict=True)
        ]


def _spec(node: ort.NodeArg) -> TensorSpec:
    datatype = BY_ONNX.get(node.type)
    if datatype is None:
        raise LoadError(f"'{node.name}' has type {node.type}, which the protocol cannot carry")
    return TensorSpec(node.name, datatype, tuple(node.shape))


def _text(name: str, array: Tensor) -> Tensor:
    """ONNX strings are UTF-8; the protocol's BYTES may be anything."""
    text = np.empty(array.size, object)
    for index, element in enumerate(array.reshape(-1)):
        try:
            text[index] = element.decode() if isinstance(element, bytes) else element
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"input '{name}': element {index} is expected to be UTF-8 text: {error}") from error
    return text.reshape(array.shape)


def _bf16_bits(value: ort.OrtValue) -> Tensor:
    """A copy of the tensor's memory: the runtime makes no numpy array of BF16."""
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(data, np.uint16).reshape(value.shape())
