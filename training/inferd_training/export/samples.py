"""The inputs on which the parity is tested: real ones where there are any, else random ones from a fixed seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferd_training.errors import DataError

RANDOM_SEED = 20240229
RANDOM_ROWS = 256
_FREE_EXTENT = 8
"""What a free axis other than the batch (a sequence's length) gets in random inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Raw inputs by name, as clients will send them, axis 0 the row; `description` is for the report.

    `truth` has the true class of each row where it is known: whole numbers [rows].
    """

    inputs: Mapping[str, NDArray[Any]]
    description: str
    truth: NDArray[np.integer[Any]] | None = None


@dataclass(frozen=True, slots=True)
class RawInput:
    """An input as clients send it. `limit`: values are indices below it; None for free values."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    limit: int | None = None


def random_samples(inputs: tuple[RawInput, ...], rows: int = RANDOM_ROWS, seed: int = RANDOM_SEED) -> Samples:
    """Draws `rows` rows for every input: standard normal floats, uint8 over its whole range, other integers 0 or 1 (or
    below `limit`), booleans evenly. Raises DataError for a dtype that cannot be drawn.
    """
    generator = np.random.default_rng(seed)
    drawn = {entry.name: _draw(generator, entry, rows) for entry in inputs}
    return Samples(drawn, f"{rows} rows of random inputs, seed {seed}")


def _draw(generator: np.random.Generator, entry: RawInput, rows: int) -> NDArray[Any]:
    shape = (rows, *(_FREE_EXTENT if extent is None else extent for extent in entry.shape))
    try:
        dtype = np.dtype(entry.dtype)
    except TypeError as error:
        raise DataError(
            f"the input '{entry.name}' is {entry.dtype}, for which nothing random can be drawn: give samples in a .npz"
        ) from error
    if entry.limit is not None:
        return generator.integers(0, entry.limit, shape).astype(dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    raise DataError(
        f"the input '{entry.name}' is {entry.dtype}, for which nothing random can be drawn: give samples in a .npz"
    )


def load_samples(path: Path, inputs: tuple[RawInput, ...]) -> Samples:
    """Reads a `.npz` file with one array an input, by name. Raises DataError where it does not fit the inputs."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a .npz file of arrays: {error}") from error
    expected = {entry.name for entry in inputs}
    if set(arrays) != expected:
        raise DataError(f"{path} holds {_listed(arrays)}, where the inputs {_listed(expected)} were expected")
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(
            f"{path} holds arrays of {_listed(map(str, lengths))} rows, where as many of each were expected"
        )
    for entry in inputs:
        array = arrays[entry.name]
        fits = array.ndim == len(entry.shape) + 1 and all(
            wanted in (None, extent) for wanted, extent in zip(entry.shape, array.shape[1:], strict=True)
        )
        if not fits or array.dtype != np.dtype(entry.dtype):
            raise DataError(
                f"'{entry.name}' in {path} is {array.dtype} {list(array.shape)}, where {entry.dtype} "
                f"[rows, {', '.join(str(extent or 'free') for extent in entry.shape)}] was expected"
            )
    return Samples(arrays, f"{lengths.pop()} rows given by the user")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"
