"""Parity: ONNX Runtime must answer as Keras does, whatever the size of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferd_training.errors import VerificationError
from inferd_training.export.runtime import Runtime
from inferd_training.export.samples import Samples

BATCHES: Mapping[int, int | None] = {1: 64, 2: 128, 7: 448, 64: None}
"""Batch size -> rows compared, None for all: 1 row (no batch at all), 2, an odd number, and a server's full batch. 64
runs of each size show a dependence on the size; the size that computes fastest goes through everything."""

MIN_TOP1_AGREEMENT = 0.999
"""Of the rows: a near tie between two classes may fall either way within the tolerance, once in a thousand rows; on the
subsets of fewer rows that allows none. It catches what an absolute tolerance cannot: outputs that are all tiny."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|ONNX - Keras| <= absolute + relative * |Keras|, elementwise, as numpy.isclose."""

    absolute: float
    relative: float


_TOLERANCES = {
    # float32 has a unit roundoff of 6e-8. Two runtimes sum the same n terms in different orders, which differs by about
    # sqrt(n) roundoffs, 6e-6 for n = 10,000, relative to the terms' size: hence 1e-5 for outputs of order 1 and below,
    # and ten times that, relative, for larger ones, in which more layers' errors have added up.
    "float32": Tolerance(1e-5, 1e-4),
    # The same reasoning with a unit roundoff of 5e-4: nothing tighter than a few roundoffs can be asked for.
    "float16": Tolerance(2e-3, 1e-2),
    "float64": Tolerance(1e-10, 1e-8),
}


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output in one batch size. `top1_agreement` is a share of the rows (of all vectors along the last axis)."""

    output: str
    batch: int
    rows: int
    max_absolute_error: float
    top1_agreement: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Parity:
    """What was compared, and the answers at the largest batch size, by output name."""

    figures: tuple[OutputParity, ...]
    tolerance: Tolerance | None
    keras: Mapping[str, NDArray[Any]]
    onnx: Mapping[str, NDArray[Any]]

    def as_json(self) -> dict[str, Any]:
        """The figures as a JSON document."""
        tolerances = _TOLERANCES if self.tolerance is None else {"every float": self.tolerance}
        return {
            "figures": [asdict(figure) for figure in self.figures],
            "tolerances": {name: asdict(tolerance) for name, tolerance in tolerances.items()},
            "min_top1_agreement": MIN_TOP1_AGREEMENT,
        }


class ParityError(VerificationError):
    """The two runtimes differ; the layer, where it is known, is added by the caller."""


Reference = Callable[[Mapping[str, NDArray[Any]], int], Mapping[str, NDArray[Any]]]
"""Keras's answers: raw inputs by name and a batch size -> outputs by name."""


def check_parity(
    runtime: Runtime,
    reference: Reference,
    samples: Samples,
    *,
    tolerance: Tolerance | None = None,
    batches: Mapping[int, int | None] = BATCHES,
) -> Parity:
    """Compares both runtimes on the samples at every batch size.

    `tolerance` overrides the default of each output's dtype. Outputs that are not floating-point must be equal. Raises
    ParityError at the first breach; a value that is not finite is one, in whichever runtime. Raises VerificationError
    where a row's answer depends on the rows beside it: a server puts the rows of different clients into one batch.
    """
    figures: list[OutputParity] = []
    expected: Mapping[str, NDArray[Any]] = {}
    found: Mapping[str, NDArray[Any]] = {}
    alone: Mapping[str, NDArray[Any]] = {}
    for batch, limit in sorted(batches.items()):
        inputs = {name: array[:limit] for name, array in samples.inputs.items()}
        expected, found = reference(inputs, batch), runtime.run(inputs, batch)
        if list(expected) != list(found):
            raise ParityError(f"the outputs are {', '.join(found)}, where Keras has {', '.join(expected)}")
        figures.extend(_compare(name, batch, found[name], expected[name], tolerance) for name in expected)
        alone = alone or found
        for name, array in alone.items():
            _check_rows_apart(name, batch, array, found[name][: len(array)], tolerance)
    return Parity(tuple(figures), tolerance, expected, found)


def _check_rows_apart(
    name: str, batch: int, alone: NDArray[Any], together: NDArray[Any], tolerance: Tolerance | None
) -> None:
    allowed = tolerance or _TOLERANCES.get(alone.dtype.name) or Tolerance(0.0, 0.0)
    if alone.shape == together.shape and np.allclose(together, alone, rtol=allowed.relative, atol=allowed.absolute):
        return
    raise VerificationError(
        f"the output '{name}' of a row changes with the other rows of its batch of {batch}, so that requests cannot be "
        "batched: keep axis 0 out of every reduction, reshape and attention"
    )


def _compare(
    name: str, batch: int, found: NDArray[Any], expected: NDArray[Any], tolerance: Tolerance | None
) -> OutputParity:
    where = f"the output '{name}' at batch {batch}"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ParityError(
            f"{where} is {found.dtype} {list(found.shape)} in ONNX Runtime and {expected.dtype} {list(expected.shape)} "
            "in Keras"
        )
    if not np.issubdtype(expected.dtype, np.floating):
        if not np.array_equal(found, expected):
            raise ParityError(f"{where} differs between ONNX Runtime and Keras, where {expected.dtype} must be equal")
        return OutputParity(name, batch, len(found), 0.0, None)
    for runtime, array in (("Keras itself", expected), ("ONNX Runtime", found)):
        if not np.isfinite(array).all():
            raise ParityError(f"{where} holds values that are not finite in {runtime}")
    error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    allowed = tolerance or _TOLERANCES[expected.dtype.name]
    breach = error > allowed.absolute + allowed.relative * np.abs(expected.astype(np.float64))
    agreement = None
    if expected.ndim > 1 and expected.shape[-1] > 1:
        agreement = float((found.argmax(axis=-1) == expected.argmax(axis=-1)).mean())
    if breach.any():
        raise ParityError(
            f"{where} differs by up to {error.max():.3g} between ONNX Runtime and Keras, where {allowed.absolute:g} + "
            f"{allowed.relative:g} of the value is allowed"
        )
    if agreement is not None and agreement < MIN_TOP1_AGREEMENT:
        raise ParityError(
            f"{where} has its largest element at another place than Keras's in {1 - agreement:.2%} of the rows, where "
            f"{1 - MIN_TOP1_AGREEMENT:.2%} is allowed"
        )
    return OutputParity(name, batch, len(found), float(error.max(initial=0.0)), agreement)
