"""A batch: rows of one or more requests, gathered for a run and scattered back after it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

import numpy as np
from inferd_protocol.tensors import Tensor

from inferd_server.errors import RuntimeFailure, ServerError
from inferd_server.request import Content
from inferd_server.scheduling.work import Layout, Slice, Work
from inferd_server.shared_memory.regions import Window

_LOG = logging.getLogger(__name__)


def gather(slices: Sequence[Slice], rows: int) -> list[Tensor]:
    """The inputs of a run: views of the one request where it is alone, one copy of each row where there are several."""
    first, start, stop = slices[0]
    layout = first.layout
    if len(slices) == 1:
        if first.assembly is None:
            return [layout.array(index, content, first.rows) for index, content in enumerate(first.contents)]
        return [layout.array(index, _rows(index, slices[0]), stop - start) for index in range(len(first.contents))]
    try:
        return [
            _join(layout, index, cast("list[memoryview | Tensor]", [_rows(index, piece) for piece in slices]), rows)
            for index in range(len(first.contents))
        ]
    except TypeError:
        # Only shared memory cannot be joined as bytes can; to look for it would cost the requests without it.
        return [_read(layout, index, slices, rows) for index in range(len(first.contents))]


def scatter(slices: Sequence[Slice], outputs: Sequence[Tensor]) -> Sequence[tuple[Work, ServerError]]:
    """Gives each request its rows of the outputs, as views, and answers those that have all of theirs.

    Returns the requests that were told an error instead.
    """
    if len(slices) == 1:
        error = _give(slices[0], outputs)
        return () if error is None else [(slices[0][0], error)]
    failed: list[tuple[Work, ServerError]] = []
    row = 0
    for piece in slices:
        end = row + piece[2] - piece[1]
        error = _give(piece, [array[row:end] for array in outputs])
        if error is not None:
            failed.append((piece[0], error))
        row = end
    return failed


def check_rows(names: Sequence[str], outputs: Sequence[Tensor], rows: int) -> None:
    """Holds the outputs against the batch: each must have a row for each row that went in.

    Raises RuntimeFailure naming the output that has not.
    """
    for name, array in zip(names, outputs, strict=True):
        if array.ndim == 0 or array.shape[0] != rows:
            raise RuntimeFailure(
                f"output '{name}' has shape {list(array.shape)} for a batch of {rows} rows: its axis 0 is no batch axis"
            )


def _rows(index: int, piece: Slice) -> Content:
    work, start, stop = piece
    content = work.contents[index]
    if work.assembly is None:
        return content
    if isinstance(content, Window):
        row = content.nbytes // work.rows
        return content.part(start * row, stop * row)
    return work.layout.array(index, content, work.rows)[start:stop]


def _join(layout: Layout, index: int, parts: list[memoryview | Tensor], rows: int) -> Tensor:
    if layout.dtypes[index].hasobject:
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)])
    # Half the time of making an array of each part for numpy to concatenate, and still one copy.
    return layout.array(
        index, memoryview(b"".join([part.data if isinstance(part, np.ndarray) else part for part in parts])), rows
    )


def _read(layout: Layout, index: int, slices: Sequence[Slice], rows: int) -> Tensor:
    """As `_join`, where some of the parts are in shared memory: they are read to their place in the batch."""
    joined = np.empty((rows, *layout.row_shapes[index]), layout.dtypes[index])
    row = 0
    for piece in slices:
        end = row + piece[2] - piece[1]
        part = _rows(index, piece)
        if isinstance(part, Window):
            part.read_into(joined[row:end].data)
        else:
            joined[row:end] = layout.array(index, part, end - row)
        row = end
    return joined


def _give(piece: Slice, outputs: Sequence[Tensor]) -> ServerError | None:
    work = piece[0]
    try:
        return work.finish(work.reply, outputs) if work.assembly is None else work.assembly.add(piece, outputs)
    except Exception as defect:  # noqa: BLE001 - see below
        # A defect met by one answer must not take the rest of the batch along, nor the thread that runs the model.
        _LOG.exception("an answer failed")
        error = RuntimeFailure(f"the answer could not be made: {defect}")
        if work.assembly is not None:
            work.assembly.fail()
        work.reply.fail(error)
        return error
