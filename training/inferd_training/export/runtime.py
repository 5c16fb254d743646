"""The runtime that serves, as the export sees it: ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from inferd_training.errors import VerificationError

PROVIDER = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Limits:
    """The newest opset of ONNX's default domain and the newest IR version that the installed runtime takes."""

    opset: int
    ir: int


@cache
def limits() -> Limits:
    """Asks the installed ONNX Runtime, which does not publish its limits, by loading one-node models."""
    newest = onnx.defs.onnx_opset_version()
    opset = max(number for number in range(7, newest + 1) if _takes(opset=number, ir=4 if number < 15 else 8))
    ir = max(number for number in range(3, onnx.IR_VERSION + 1) if _takes(opset=8, ir=number))
    return Limits(opset, ir)


def _takes(*, opset: int, ir: int) -> bool:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "limits", [value], [other])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=ir)
    try:
        _session(proto.SerializeToString())
    except Exception:  # noqa: BLE001 - the runtime's own types share no base; any refusal is the answer asked for
        return False
    return True


class Runtime:
    """A model loaded on the CPU."""

    def __init__(self, path: Path) -> None:
        """Raises VerificationError where ONNX Runtime refuses the file."""
        try:
            self._session = _session(str(path))
        except Exception as error:  # as above: whatever it raises, it does not load
            reason = " ".join(str(error).split())
            raise VerificationError(f"ONNX Runtime {ort.__version__} does not load {path.name}: {reason}") from error
        self.inputs = {value.name: str(value.type) for value in self._session.get_inputs()}
        self.outputs = {value.name: str(value.type) for value in self._session.get_outputs()}

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """The outputs by name, computed in batches of `batch` rows; the last one may be smaller.

        Raises VerificationError where ONNX Runtime fails.
        """
        rows = len(next(iter(inputs.values())))
        names = list(self.outputs)
        parts: list[list[NDArray[Any]]] = []
        for start in range(0, rows, batch):
            feed = {name: array[start : start + batch] for name, array in inputs.items()}
            try:
                parts.append(self._session.run(names, feed))
            except Exception as error:  # as above
                reason = " ".join(str(error).split())
                raise VerificationError(
                    f"ONNX Runtime {ort.__version__} fails in a batch of {batch}: {reason}"
                ) from error
            for name, array in zip(names, parts[-1], strict=True):
                given = min(batch, rows - start)
                if array.ndim == 0 or len(array) != given:
                    raise VerificationError(
                        f"the output '{name}' has the shape {list(array.shape)} for a batch of {given} rows, where as "
                        "many rows were expected on axis 0: keep the batch axis through the whole model"
                    )
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def version() -> str:
    """The installed ONNX Runtime's version."""
    return str(ort.__version__)


def _session(model: str | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Errors are raised; warnings would only repeat what the report says.
    options.log_severity_level = 4
    return ort.InferenceSession(model, options, providers=[PROVIDER])
