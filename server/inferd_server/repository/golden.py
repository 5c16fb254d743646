"""Holds a model, as it will be served, against the samples and answers that its export put beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from inferd_protocol import golden
from inferd_protocol.artefact import GOLDEN_FILE
from inferd_protocol.datatypes import BF16
from inferd_protocol.golden import MOST_ROWS, Golden, GoldenError
from inferd_protocol.tensors import Tensor, bf16_values

from inferd_server.errors import LoadError, ServerError
from inferd_server.runtime.backend import RuntimeModel, TensorSpec


def check_golden(model: RuntimeModel, folder: Path, max_batch_size: int) -> int:
    """Runs the golden samples of a version's folder and compares the answers. Returns how many runs that were.

    Each row is run alone, and all of them in batches as large as `max_batch_size` allows; with 0, a model without a
    batch axis, the samples are one run. Without a file nothing is checked.
    Raises LoadError where the file cannot be read, does not fit the model, or an answer is not the one it holds.
    """
    path = folder / GOLDEN_FILE
    if not path.is_file():
        return 0
    try:
        samples = golden.read(path)
    except (GoldenError, OSError) as error:
        raise LoadError(f"{GOLDEN_FILE} holds no golden samples: {error}: publish the export again") from error
    inputs = _fitting("input", model.signature.inputs, samples.inputs)
    outputs = _fitting("output", model.signature.outputs, samples.outputs)
    if not max_batch_size:
        _check(model, samples, inputs, outputs)
        return 1
    lengths = {len(array) for array in (*inputs, *outputs)}
    rows = min(lengths)
    if len(lengths) > 1 or not 1 <= rows <= MOST_ROWS:
        raise LoadError(f"{GOLDEN_FILE} has arrays of {sorted(lengths)} rows, expected 1 to {MOST_ROWS}, as many each")
    runs = 0
    for size in sorted({1, min(rows, max_batch_size)}):
        for start in range(0, rows, size):
            piece = slice(start, start + size)
            _check(model, samples, [array[piece] for array in inputs], [array[piece] for array in outputs])
            runs += 1
    return runs


def _fitting(kind: str, specs: Sequence[TensorSpec], arrays: Mapping[str, Tensor]) -> list[Tensor]:
    """The arrays in the model's order."""
    names = [spec.name for spec in specs]
    if sorted(arrays) != sorted(names):
        raise LoadError(f"{GOLDEN_FILE} has the {kind}s {sorted(arrays)}, the model has {sorted(names)}")
    for spec in specs:
        array = arrays[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != spec.datatype.numpy:
            shape = [dim if isinstance(dim, int) else -1 for dim in spec.shape]
            raise LoadError(
                f"{GOLDEN_FILE} has the {kind} '{spec.name}' as {array.dtype} {list(array.shape)}, "
                f"the model has {spec.datatype.name} {shape}"
            )
    return [arrays[name] for name in names]


def _check(model: RuntimeModel, samples: Golden, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    try:
        found = model.run(inputs)
    except ServerError as error:
        raise LoadError(f"the model does not run on the samples of {GOLDEN_FILE}: {error}") from error
    for spec, one, other in zip(model.signature.outputs, found, expected, strict=True):
        if one.shape != other.shape:
            raise LoadError(
                f"output '{spec.name}' has shape {list(one.shape)} for the samples of {GOLDEN_FILE}, "
                f"which expects {list(other.shape)}"
            )
        tolerance = samples.tolerances[spec.name]
        if spec.datatype is BF16:
            one, other = bf16_values(one), bf16_values(other)
        apart = golden.difference(one, other, tolerance)
        if apart is None:
            continue
        allowed = "equality" if one.dtype.kind != "f" else f"{tolerance.absolute:g} + {tolerance.relative:g} * |answer|"
        size = f"by up to {apart:.3g}" if math.isfinite(apart) else "in what is finite"
        raise LoadError(
            f"output '{spec.name}' differs {size} from the answers of {GOLDEN_FILE}, expected {allowed} on "
            f"{model.provider}: publish model and samples of one export"
        )
