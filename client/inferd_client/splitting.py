"""A batch that is too large for one message: halved along its first axis until it fits, and put together again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inferd_client.errors import BadResponse
from inferd_client.metadata import ModelMetadata
from inferd_client.requests import Arrays
from inferd_client.results import InferResult


def obstacle(model: ModelMetadata, arrays: Arrays) -> str | None:
    """Why these inputs cannot be split by rows, None if they can."""
    if not model.batched:
        return f"model '{model.name}' has no batch axis to split along"
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) != 1 or () in lengths:
        return "its inputs do not have the same number of rows"
    if rows(arrays) < 2:
        return "it is a single row"
    return None


def rows(arrays: Arrays) -> int:
    """The length of the first axis of the first input."""
    return len(next(iter(arrays.values())))


def halves(arrays: Arrays) -> tuple[Arrays, Arrays]:
    """The first and the second half of the rows, as views."""
    middle = rows(arrays) // 2
    return (
        {name: array[:middle] for name, array in arrays.items()},
        {name: array[middle:] for name, array in arrays.items()},
    )


def join(parts: Sequence[tuple[Arrays, InferResult]]) -> InferResult:
    """The results of the parts of a batch, each beside its inputs, as the result of the whole.

    Raises BadResponse where an output does not have as many rows as went in, so that nothing is joined askew, and where
    the parts were answered by different versions of the model.
    """
    first = parts[0][1]
    if len(parts) == 1:
        return first
    for arrays, part in parts:
        if part.model_version != first.model_version or part.keys() != first.keys():
            raise BadResponse(
                f"a batch was sent in parts, and model '{first.model_name}' answered them as versions "
                f"{first.model_version} and {part.model_version}, with {list(first)} and {list(part)}: send it again"
            )
        for name, array in part.items():
            if array.shape[:1] != (rows(arrays),):
                raise BadResponse(
                    f"output '{name}' has shape {list(array.shape)} for {rows(arrays)} rows, so the parts of a batch "
                    "cannot be joined"
                )
    outputs = {name: np.concatenate([part[name] for _, part in parts]) for name in first}
    return InferResult(outputs, first.model_name, first.model_version, first.id)
