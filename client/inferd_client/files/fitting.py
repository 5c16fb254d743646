"""Rows from a file as a model takes them: which of its tensors, which shape, which values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from inferd_protocol.command import CommandError
from inferd_protocol.datatypes import BF16
from inferd_protocol.tensors import Tensor

from inferd_client.metadata import TensorMetadata


def choose(model: str, kind: str, tensors: Sequence[TensorMetadata], name: str | None) -> TensorMetadata:
    """The tensor called `name`, or the only one there is. `kind` is what the option is called, `input` or `output`.

    Raises CommandError where there is none of that name, or several and no name.
    """
    names = ", ".join(tensor.name for tensor in tensors)
    if name is None:
        if len(tensors) != 1:
            raise CommandError(f"model '{model}' has the {kind}s {names}: choose one with --{kind}")
        return tensors[0]
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise CommandError(f"model '{model}' has no {kind} '{name}': it has {names}")


def adapt(rows: Tensor, tensor: TensorMetadata, scale: float | None, invert: bool) -> Tensor:
    """`rows` in the shape that `tensor` has, with their values inverted and scaled, in its dtype where that was asked
    for.

    Axes of length 1 may be missing or superfluous: [n, 28, 28] fits [-1, 28, 28, 1]. Without a scale the dtype is
    left to the client, which casts where nothing is lost. Raises CommandError for rows of another shape, and for a
    scale or an inversion of what cannot be scaled or inverted.
    """
    rows = _reshape(rows, tensor)
    if invert:
        if rows.dtype != np.uint8:
            raise CommandError(f"--invert is for values of 0 to 255 (uint8), these are {rows.dtype}")
        rows = 255 - rows
    if scale is None:
        return rows
    target = np.dtype(np.float32) if tensor.datatype is BF16 else tensor.datatype.numpy
    if target.kind != "f" or rows.dtype.kind not in "iufb":
        raise CommandError(
            f"--scale is for numbers and an input of floats: '{tensor.name}' takes {tensor.datatype.name}"
        )
    return (rows.astype(np.promote_types(np.float32, target)) * scale).astype(target)


def fits(rows: Tensor, tensor: TensorMetadata) -> bool:
    """Whether `adapt` can give `rows` the shape of `tensor`."""
    return rows.ndim > 0 and (
        _matches(rows.shape, tensor.shape) or _matches(_long(rows.shape[1:]), _long(tensor.shape[1:]))
    )


def _reshape(rows: Tensor, tensor: TensorMetadata) -> Tensor:
    if not fits(rows, tensor):
        raise CommandError(
            f"rows of shape {list(rows.shape[1:])} do not fit input '{tensor.name}' of shape {list(tensor.shape)}"
        )
    if _matches(rows.shape, tensor.shape):
        return rows
    remaining = iter(_long(rows.shape[1:]))
    return rows.reshape(len(rows), *(1 if size == 1 else next(remaining) for size in tensor.shape[1:]))


def _long(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _matches(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(shape) == len(wanted) and all(want in (-1, size) for size, want in zip(shape, wanted, strict=True))
