"""Golden samples: a few of the samples that the parity was tested on, with the answers that ONNX Runtime gave to them.

They travel with the model, so that whoever loads it can see that it still answers so on the machine that serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from inferd_protocol.golden import MOST_ROWS, Golden, GoldenError, Tolerance, difference, read, write
from numpy.typing import NDArray

from inferd_training.errors import VerificationError
from inferd_training.export.parity import Tolerance as ParityTolerance
from inferd_training.export.runtime import Runtime
from inferd_training.export.samples import Samples
from inferd_training.files import sha256

_MOST_BYTES = 16 * 1024 * 1024
"""Of all rows: a repository keeps many versions, and reads the samples at every load."""

_TOLERANCES = {
    # Wider than the parity's own, which holds on one machine. A GPU multiplies float32 in TF32, with 10 bits of
    # mantissa: a roundoff of 5e-4, which adds up over the layers to a few times that. Another model differs by more.
    "float32": Tolerance(5e-3, 1e-2),
    "float16": Tolerance(1e-2, 3e-2),
    "float64": Tolerance(1e-8, 1e-6),
}


def write_golden(
    path: Path,
    samples: Samples,
    answers: Mapping[str, NDArray[Any]],
    runtime: Runtime,
    allowed: ParityTolerance | None = None,
) -> dict[str, Any]:
    """Writes up to MOST_ROWS of the samples, spread evenly, with `answers`, and checks that they are reproduced.

    `allowed` is the parity's own tolerance, where somebody set one.

    Returns the report's part, {"golden": {"sha256", "rows", "tolerances"}}; nothing, and then writes nothing, where a
    single row is too large. Raises VerificationError as `check_golden` does.
    """
    arrays = [*samples.inputs.values(), *answers.values()]
    available = len(arrays[0])
    fitting = _MOST_BYTES * available // max(1, sum(array.nbytes for array in arrays))
    rows = min(MOST_ROWS, available, fitting)
    if not rows:
        return {}
    chosen = np.linspace(0, available - 1, rows).astype(np.intp)
    tolerances = {name: _tolerance(array, allowed) for name, array in answers.items()}
    golden = Golden(_rows(samples.inputs, chosen), _rows(answers, chosen), tolerances)
    write(path, golden)
    check_golden(path, runtime)
    written = {name: {"absolute": one.absolute, "relative": one.relative} for name, one in tolerances.items()}
    return {"golden": {"sha256": sha256(path), "rows": rows, "tolerances": written}}


def check_golden(path: Path, runtime: Runtime) -> int:
    """Runs the samples of a file, each row alone and all together, and returns their number.

    Raises VerificationError where the file cannot be read, does not fit the model, or an answer is another.
    """
    try:
        golden = read(path)
    except (GoldenError, OSError) as error:
        raise VerificationError(f"{path} holds no golden samples ({error}): export the model again") from error
    for kind, arrays, expected in (
        ("inputs", golden.inputs, runtime.inputs),
        ("outputs", golden.outputs, runtime.outputs),
    ):
        if set(arrays) != set(expected):
            raise VerificationError(
                f"{path} has the {kind} {', '.join(sorted(arrays))}, where the model has "
                f"{', '.join(sorted(expected))}: export the model again"
            )
    lengths = {len(array) if array.ndim else 0 for array in (*golden.inputs.values(), *golden.outputs.values())}
    rows = min(lengths)
    if len(lengths) > 1 or not 1 <= rows <= MOST_ROWS:
        raise VerificationError(
            f"{path} has arrays of {sorted(lengths)} rows, where 1 to {MOST_ROWS} were expected, as many of each"
        )
    for batch in sorted({1, rows}):
        found = runtime.run(golden.inputs, batch)
        for name, array in golden.outputs.items():
            _compare(path, name, batch, found[name], array, golden.tolerances[name])
    return rows


def _compare(
    path: Path, name: str, batch: int, found: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance
) -> None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise VerificationError(
            f"the output '{name}' is {found.dtype} {list(found.shape)}, where {path} expects {expected.dtype} "
            f"{list(expected.shape)}"
        )
    apart = difference(found, expected, tolerance)
    if apart is not None:
        raise VerificationError(
            f"the output '{name}' at batch {batch} differs by up to {apart:.3g} from the answers in {path}, where "
            f"{tolerance.absolute:g} + {tolerance.relative:g} of the value is allowed: export the model again"
        )


def _tolerance(array: NDArray[Any], allowed: ParityTolerance | None) -> Tolerance:
    default = _TOLERANCES.get(array.dtype.name, Tolerance(0.0, 0.0))
    if allowed is None or array.dtype.kind != "f":
        return default
    # Who allows ONNX Runtime to differ from Keras by more allows it to differ from itself by as much.
    return Tolerance(max(default.absolute, allowed.absolute), max(default.relative, allowed.relative))


def _rows(arrays: Mapping[str, NDArray[Any]], chosen: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    return {name: array[chosen] for name, array in arrays.items()}
