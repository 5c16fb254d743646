"""A session of ONNX Runtime as a model: what it takes and gives, and its runs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from inferd_protocol.datatypes import BF16, BY_ONNX, BYTES
from inferd_protocol.tensors import Tensor
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from inferd_server.errors import InvalidRequest, LoadError, RuntimeFailure
from inferd_server.runtime.backend import Signature, TensorSpec

UNLOADED = "the model has been unloaded"

_ONNX_BFLOAT16 = 16
"""TensorProto.DataType.BFLOAT16."""


class OnnxRuntimeModel:
    """A session. Runs from any number of threads at once."""

    def __init__(self, session: ort.InferenceSession, provider: str) -> None:
        self.provider = provider
        self.tuned = ""
        self.signature = signature_of(session)
        self._session: ort.InferenceSession | None = session
        self._run_options: ort.RunOptions | None = None
        self._input_names = [spec.name for spec in self.signature.inputs]
        self._output_names = [spec.name for spec in self.signature.outputs]
        datatypes = {spec.datatype for spec in self.signature.inputs + self.signature.outputs}
        self._has_bf16 = BF16 in datatypes
        self._texts = [index for index, spec in enumerate(self.signature.inputs) if spec.datatype is BYTES]
        if self._has_bf16 and BYTES in datatypes:
            raise LoadError("the model has both BF16 and string tensors, which the runtime cannot pass together")

    def prepare(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """Nothing: the session is as fast as it was loaded."""

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the session; the GIL is released meanwhile. Raises as `RuntimeModel.run` says."""
        session = self._session
        if session is None:
            raise RuntimeFailure(UNLOADED)
        try:
            if self._has_bf16:
                return self._run_values(session, inputs)
            if self._texts:
                inputs = self._with_texts(inputs)
            feeds = dict(zip(self._input_names, inputs, strict=True))
            outputs: list[Tensor] = session.run(self._output_names, feeds, self._run_options)
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
        values = session.run_with_ort_values(self._output_names, feeds, self._run_options)
        return [
            _bf16_bits(value) if spec.datatype is BF16 else value.numpy()
            for spec, value in zip(self.signature.outputs, values, strict=True)
        ]


def signature_of(session: ort.InferenceSession) -> Signature:
    """What a session takes and gives. Raises LoadError for a type that the protocol cannot carry."""
    return Signature(
        inputs=tuple(_spec(node) for node in session.get_inputs()),
        outputs=tuple(_spec(node) for node in session.get_outputs()),
        metadata=dict(session.get_modelmeta().custom_metadata_map),
    )


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
