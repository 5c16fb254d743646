"""A batch: rows of one or more requests, gathered for a run and scattered back after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from inferd_protocol.tensors import Tensor

from inferd_server.errors import RuntimeFailure, ServerError
from inferd_server.scheduling.work import Slice


def gather(slices: Sequence[Slice]) -> Sequence[Tensor]:
    """The inputs of a run: views of the one request where it is alone, one copy of each row where there are several."""
    if len(slices) == 1:
        work, start, stop = slices[0]
        return work.inputs if work.assembly is None else [array[start:stop] for array in work.inputs]
    columns = zip(*(work.inputs for work, _, _ in slices), strict=True)
    return [
        np.concatenate([array[start:stop] for array, (_, start, stop) in zip(column, slices, strict=True)])
        for column in columns
    ]


def scatter(slices: Sequence[Slice], outputs: Sequence[Tensor]) -> None:
    """Gives each request its rows of the outputs, as views, and completes those that have all of theirs."""
    if len(slices) == 1:
        _give(slices[0], outputs)
        return
    row = 0
    for piece in slices:
        end = row + piece.stop - piece.start
        _give(piece, [array[row:end] for array in outputs])
        row = end


def fail(slices: Sequence[Slice], error: ServerError) -> None:
    """Fails the requests of a batch."""
    for piece in slices:
        if piece.work.assembly is None:
            piece.work.completion.fail(error)
        else:
            piece.work.assembly.fail(piece, error)


def check_rows(names: Sequence[str], outputs: Sequence[Tensor], rows: int) -> None:
    """Holds the outputs against the batch: each must have a row for each row that went in.

    Raises RuntimeFailure naming the output that has not.
    """
    for name, array in zip(names, outputs, strict=True):
        if array.ndim == 0 or array.shape[0] != rows:
            raise RuntimeFailure(
                f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows: its axis 0 is no batch axis"
            )


def _give(piece: Slice, outputs: Sequence[Tensor]) -> None:
    if piece.work.assembly is None:
        piece.work.completion.send(outputs)
    else:
        piece.work.assembly.add(piece, outputs)
