"""INT8 by ONNX Runtime's own quantiser: which nodes are taken is the caller's to say.

Static: weights per channel and activations as QuantizeLinear / DequantizeLinear pairs around the nodes, activations
unsigned and weights signed, which is what the VNNI and DOT instructions of today's CPUs multiply fastest. Dynamic:
weights alone are kept as INT8, and the ranges of activations are taken in each run.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import IntegerOpsRegistry, QDQRegistry

from inferd_training.errors import OptimiseError
from inferd_training.optimise.variants import RISING, cut_off

_STATIC = frozenset(QDQRegistry) - {"LayerNormalization", "BatchNormalization", "InstanceNormalization"}
"""Normalisations are left in floating point: they are cheap, and what they divide by loses most in 8 bits."""
_DYNAMIC = frozenset(IntegerOpsRegistry) - {"Conv", "Gather", "EmbedLayerNormalization"}
"""A convolution with dynamic ranges (ConvInteger) has no fast kernel; an embedding is read, not multiplied."""

_ROWS_A_RUN = 64


Ranges: TypeAlias = TensorsData
"""Of a model's tensors, by name."""


class Calibration(StrEnum):
    """How the range of an activation is taken from what the calibration rows gave."""

    MIN_MAX = "min-max"
    """All of it."""
    ENTROPY = "entropy"
    """The part that loses least information (Migacz 2017, "8-bit inference with TensorRT")."""
    PERCENTILE = "percentile"
    """All but the outermost 0.01 %."""


_METHODS = {
    Calibration.MIN_MAX: CalibrationMethod.MinMax,
    Calibration.ENTROPY: CalibrationMethod.Entropy,
    Calibration.PERCENTILE: CalibrationMethod.Percentile,
}


def calibrate(
    proto: onnx.ModelProto,
    rows: Mapping[str, NDArray[Any]],
    method: Calibration,
    nodes: Collection[str] = (),
) -> Ranges:
    """The ranges of a model's tensors over the calibration rows, [rows, ...] by input name.

    Of `nodes` and all others of their operators, where some are given: a histogram of each tensor takes its time.
    What a Relu or Clip would cut off is in no range: steps are finer so, and as the function then changes nothing that
    the quantisation has not, ONNX Runtime drops it, with a conversion from one range to the other.

    Raises OptimiseError where the rows, or what the model makes of them, are not finite.
    """
    for name, array in rows.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise OptimiseError(
                f"the calibration rows of the input '{name}' hold values that are not finite: take them out"
            )
    with tempfile.TemporaryDirectory(prefix="inferd-calibration-") as scratch, _quiet():
        path = Path(scratch) / "model.onnx"
        onnx.save(proto, path)
        calibrator = create_calibrator(
            path,
            sorted(RISING.union(node.op_type for node in proto.graph.node if node.name in nodes)) if nodes else None,
            augmented_model_path=str(Path(scratch) / "augmented.onnx"),
            calibrate_method=_METHODS[method],
        )
        try:
            calibrator.collect_data(_Reader(rows))
            found: Ranges = calibrator.compute_data()
        except ValueError as error:
            # A histogram of values that are not finite has no edges.
            raise OptimiseError(f"the model cannot be calibrated ({_one_line(error)})") from error
    for name, data in found.items():
        low, high = data.range_value
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise OptimiseError(f"the tensor '{name}' is not finite on the calibration rows: INT8 has no range for it")
    for name, left in cut_off(proto).items():
        if name in found and left in found:
            found[name] = found[left]
    return found


def static_nodes(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes that static quantisation can take, in the graph's order."""
    return tuple(node.name for node in proto.graph.node if node.op_type in _STATIC and not node.domain)


def dynamic_nodes(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes that dynamic quantisation can take: those that multiply by constant weights."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    return tuple(
        node.name
        for node in proto.graph.node
        if node.op_type in _DYNAMIC and not node.domain and any(name in constants for name in node.input[1:])
    )


def static(proto: onnx.ModelProto, ranges: Ranges, nodes: Collection[str]) -> onnx.ModelProto:
    """The model with these nodes in INT8 by `ranges`. Raises OptimiseError where the quantiser refuses them."""
    types = sorted({node.op_type for node in proto.graph.node if node.name in nodes})
    with _quiet():
        try:
            quantiser = QDQQuantizer(
                _copy(proto),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=sorted(nodes),
                nodes_to_exclude=[],
                op_types_to_quantize=types,
                extra_options={},
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
        except Exception as error:  # it raises what it meets
            raise OptimiseError(f"static quantisation of {_named(nodes)} fails: {_one_line(error)}") from error
        made: onnx.ModelProto = quantiser.model.model
    return _with_props(made, proto)


def dynamic(proto: onnx.ModelProto, nodes: Collection[str], *, per_channel: bool = True) -> onnx.ModelProto:
    """The model with these nodes' weights in INT8, with a scale for each channel or one for all of a tensor.

    Raises OptimiseError where the quantiser refuses them.
    """
    types = sorted({node.op_type for node in proto.graph.node if node.name in nodes})
    with tempfile.TemporaryDirectory(prefix="inferd-quantise-") as scratch, _quiet():
        path = Path(scratch) / "model.onnx"
        try:
            quantize_dynamic(
                _copy(proto),
                path,
                op_types_to_quantize=types,
                nodes_to_quantize=sorted(nodes),
                per_channel=per_channel,
                weight_type=QuantType.QInt8,
            )
            made = onnx.load(path)
        except Exception as error:  # as above
            raise OptimiseError(f"dynamic quantisation of {_named(nodes)} fails: {_one_line(error)}") from error
    return _with_props(made, proto)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands rows to the calibrator, some a run."""

    def __init__(self, rows: Mapping[str, NDArray[Any]]) -> None:
        count = len(next(iter(rows.values())))
        self._feeds: Iterator[dict[str, NDArray[Any]]] = iter(
            [
                {name: array[start : start + _ROWS_A_RUN] for name, array in rows.items()}
                for start in range(0, count, _ROWS_A_RUN)
            ]
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser gives its own users advice, by the root logger, and the calibrator prints what it does."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # A mask's least float has no histogram, which numpy says: what comes of it the gate sees.
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(over="ignore", invalid="ignore"):
            yield
    finally:
        logging.disable(before)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


def _with_props(made: onnx.ModelProto, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The quantiser signs what it makes, and forgets what the model says about itself."""
    del made.metadata_props[:]
    made.metadata_props.extend(proto.metadata_props)
    return made


def _named(nodes: Collection[str]) -> str:
    shown: Sequence[str] = sorted(nodes)[:3]
    return ", ".join(f"'{name}'" for name in shown) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
