"""Runs a model before anybody calls it: to see that it runs, that its rows are independent, and to have it warm."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from inferd_protocol.datatypes import BF16, BYTES, Datatype
from inferd_protocol.tensors import Tensor, bf16_bits, bf16_values

from inferd_server.errors import LoadError, ServerError
from inferd_server.runtime.backend import RuntimeModel, Signature, TensorSpec

_LOG = logging.getLogger(__name__)

_FREE_SIZE = 8
"""The size given to an axis that may have any: small, and more than one, so that the axis is really used."""

_BF16_ONE = 0x3F80
"""The bits of 1.0."""

Fill = Callable[[Datatype, list[int]], Tensor]

_ROW_TOLERANCE = 1e-2
"""Runs of different batch sizes add in different orders, in FP16 with errors in the third digit. Rows that depend on
each other, by a softmax or a mean over axis 0 for instance, differ by far more."""


def rows_are_independent(model: RuntimeModel) -> bool:
    """Whether two different rows, run together, answer as they do alone: what makes batching right.

    False too where the model does not run on made-up inputs: what cannot be shown is not assumed.
    """
    # Rows of many values show most; a model that takes small numbers as indices may accept only 0 and 1.
    for row in (sample_inputs(model.signature, 1, _varied), sample_inputs(model.signature, 1, _ones)):
        try:
            return _independent(model, sample_inputs(model.signature, 1), row)
        except ServerError as error:
            _LOG.debug("the model does not run on made-up rows: %s", error)
    _LOG.info("no batching: the model does not run on made-up rows")
    return False


def warm_up(model: RuntimeModel, max_batch_size: int) -> None:
    """Runs the batch sizes 1, 2, 4, ... and `max_batch_size` (0: the one shape there is), so that no caller pays.

    Raises LoadError where a model whose shapes are all fixed does not run. Where sizes had to be made up, a failure may
    be theirs, and is only logged.
    """
    for rows in _sizes(max_batch_size):
        try:
            model.run(sample_inputs(model.signature, rows))
        except ServerError as error:
            if _has_free_axes(model.signature):
                _LOG.info("not warmed up: the model does not run on made-up shapes: %s", error)
                return
            raise LoadError(f"the model does not run on zeros of its own shapes: {error}") from error


def prepare_samples(signature: Signature, max_batch_size: int) -> list[list[Tensor]]:
    """Inputs of the smallest and of the largest batch, of different values where the datatypes allow that."""
    return [sample_inputs(signature, rows, _varied) for rows in sorted({1, max(1, max_batch_size)})]


def sample_inputs(signature: Signature, rows: int, fill: Fill | None = None) -> list[Tensor]:
    """Inputs of `rows` rows, where axis 0 is free: zeros unless another `fill` is given."""
    return [_sample(spec, rows, fill or _zeros) for spec in signature.inputs]


def _independent(model: RuntimeModel, first: list[Tensor], second: list[Tensor]) -> bool:
    alone = [model.run(first), model.run(second)]
    both = model.run([np.concatenate(pair) for pair in zip(first, second, strict=True)])
    return all(
        array.shape[:1] == (2,) and _close(spec, array[row : row + 1], alone[row][index])
        for index, (spec, array) in enumerate(zip(model.signature.outputs, both, strict=True))
        for row in (0, 1)
    )


def _sample(spec: TensorSpec, rows: int, fill: Fill) -> Tensor:
    sizes = [dim if isinstance(dim, int) else _FREE_SIZE for dim in spec.shape]
    if spec.shape and not isinstance(spec.shape[0], int):
        sizes[0] = rows
    return fill(spec.datatype, sizes)


def _zeros(datatype: Datatype, sizes: list[int]) -> Tensor:
    return np.full(sizes, b"a", object) if datatype is BYTES else np.zeros(sizes, datatype.numpy)


def _ones(datatype: Datatype, sizes: list[int]) -> Tensor:
    if datatype is BYTES:
        return np.full(sizes, b"b", object)
    return np.full(sizes, _BF16_ONE if datatype is BF16 else 1, datatype.numpy)


def _varied(datatype: Datatype, sizes: list[int]) -> Tensor:
    random = np.random.default_rng(seed=1)
    if datatype is BF16:
        return bf16_bits(random.random(sizes, np.float32))
    if datatype.numpy.kind == "f":
        return random.random(sizes, np.float64).astype(datatype.numpy)
    if datatype.size == 1 and datatype.numpy.kind in "iu":
        return random.integers(0, 128, sizes, datatype.numpy)
    return _ones(datatype, sizes)


def _sizes(max_batch_size: int) -> list[int]:
    if not max_batch_size:
        return [1]
    return [*(1 << power for power in range((max_batch_size - 1).bit_length())), max_batch_size]


def _has_free_axes(signature: Signature) -> bool:
    return any(not isinstance(dim, int) for spec in signature.inputs for dim in spec.shape[1:])


def _close(spec: TensorSpec, one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if spec.datatype is BF16:
        one, other = bf16_values(one), bf16_values(other)
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    return bool(np.allclose(one, other, rtol=_ROW_TOLERANCE, atol=_ROW_TOLERANCE, equal_nan=True))
