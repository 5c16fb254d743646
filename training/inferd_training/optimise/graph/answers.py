"""Whether a changed graph still answers as the model did, on random inputs or on given ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from inferd_training.errors import DataError
from inferd_training.export.runtime import PROVIDER
from inferd_training.export.samples import RawInput, random_samples

Arrays = Mapping[str, NDArray[Any]]

BATCHES = (1, 3)
"""Rows: alone, and an odd number of them, so that a batch axis that got fixed or lost shows."""

_FREE_EXTENTS = (8, 96)
"""What free axes but the batch get: a sequence's length, or the side of a picture that several poolings leave
something of."""

_ROUNDOFFS = {"float16": 32.0, "float32": 1024.0, "float64": 4096.0}
"""Allowed of an output, in units of its dtype's roundoff, relative to its largest element. A weight that took in a
scale is rounded once more, and sums of n terms are taken in another order, which differs by about sqrt(n) roundoffs of
the terms: those in front of a softmax or a sigmoid may be a hundred times as large as what comes out. 1024 roundoffs of
float32 are 6e-5. What is computed otherwise differs by far more. float16 has too few digits for as many, float64 digits
to spare."""

_LEAST_PEAK = 0.01
"""What a largest element counts as at least: a sigmoid is right to a roundoff of 1, however close to 0 it is."""

_LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
"""The graph as it is, and as the runtime makes it when it is served: an answer is compared with that of the same
level, so that what the runtime's own optimisations change is not held against a stage."""


class NotComparable(Exception):
    """The model cannot be run on inputs that are made up; the message is one clause that says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Inputs, and what the model answers to them: for each of `_LEVELS`, for each of the inputs, the outputs."""

    outputs: tuple[str, ...]
    feeds: tuple[Arrays, ...]
    answers: tuple[tuple[Sequence[Any], ...], ...]


def reference(proto: onnx.ModelProto, samples: Arrays | None = None) -> Reference:
    """Runs the model at each batch size on random inputs, or on the first rows of `samples` where they are given.

    Raises NotComparable where it has inputs for which nothing can be drawn, or fails on what was drawn.
    """
    outputs = tuple(end.name for end in proto.graph.output)
    fault = ""
    for extent in _FREE_EXTENTS if samples is None else (0,):
        feeds = tuple(_random(proto, extent) if samples is None else _cut(proto, samples))
        try:
            answers = tuple(_answers(proto, level, outputs, feeds) for level in _LEVELS)
        except Exception as error:  # noqa: BLE001 - the runtime's own types share no base; it has no answer
            fault = fault or " ".join(str(error).split())
        else:
            return Reference(outputs, feeds, answers)
    raise NotComparable(f"ONNX Runtime fails on the inputs: {fault}")


def difference(expected: Reference, proto: onnx.ModelProto) -> str | None:
    """How the answers of a changed model differ, in one clause; None where they are the same."""
    for level, answers in zip(_LEVELS, expected.answers, strict=True):
        try:
            found = _answers(proto, level, expected.outputs, expected.feeds)
        except Exception as error:  # noqa: BLE001 - as above; the caller says so
            return f"ONNX Runtime fails on it: {' '.join(str(error).split())}"
        for before, after in zip(answers, found, strict=True):
            for name, old, new in zip(expected.outputs, before, after, strict=True):
                apart = _apart(np.asarray(old), np.asarray(new))
                if apart is not None:
                    return f"the output '{name}' {apart}"
    return None


def _apart(old: NDArray[Any], new: NDArray[Any]) -> str | None:
    if old.shape != new.shape or old.dtype != new.dtype:
        return f"became {new.dtype} {list(new.shape)}, and was {old.dtype} {list(old.shape)}"
    if old.dtype.kind != "f":
        return None if np.array_equal(old, new) else "is another"
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True) or not np.isfinite(new[finite]).all():
        return "is finite elsewhere"
    exact, found = old[finite].astype(np.float64), new[finite].astype(np.float64)
    peak = np.abs(exact).max(initial=_LEAST_PEAK)
    allowed = _ROUNDOFFS[old.dtype.name] * float(np.finfo(old.dtype).eps) / 2 * peak
    most = np.abs(found - exact).max(initial=0.0)
    return None if most <= allowed else f"differs by up to {most:.3g}, where {allowed:.3g} is allowed"


def _answers(
    proto: onnx.ModelProto, level: ort.GraphOptimizationLevel, outputs: Sequence[str], feeds: Sequence[Arrays]
) -> tuple[Sequence[Any], ...]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    # Errors are raised; warnings are for whoever serves it.
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=[PROVIDER])
    return tuple(session.run(list(outputs), dict(feed)) for feed in feeds)


def _random(proto: onnx.ModelProto, free: int) -> list[Arrays]:
    initialisers = {tensor.name for tensor in proto.graph.initializer}
    ends = [end for end in proto.graph.input if end.name not in initialisers]
    drawn = [_entry(end, free) for end in ends]
    fixed = {extent for _, extent in drawn if extent is not None}
    if len(fixed) > 1 or not drawn:
        raise NotComparable("its inputs have no batch axis in common")
    feeds = []
    for seed, batch in enumerate(fixed or BATCHES):
        try:
            feeds.append(random_samples(tuple(entry for entry, _ in drawn), batch, seed).inputs)
        except DataError as error:
            raise NotComparable(str(error)) from error
    return feeds


def _entry(end: onnx.ValueInfoProto, free: int) -> tuple[RawInput, int | None]:
    """An input for `random_samples`, and its number of rows where that is fixed."""
    if not end.type.HasField("tensor_type") or not end.type.tensor_type.shape.dim:
        raise NotComparable(f"the input '{end.name}' has no batch axis")
    tensor = end.type.tensor_type
    rows, *row = (int(dim.dim_value) if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    row = [free if extent is None else extent for extent in row]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return RawInput(end.name, tuple(row), dtype.name), rows


def _cut(proto: onnx.ModelProto, samples: Arrays) -> list[Arrays]:
    wanted = [end.name for end in proto.graph.input if end.name in samples]
    return [{name: samples[name][:batch] for name in wanted} for batch in BATCHES]
