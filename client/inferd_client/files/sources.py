"""Where `inferd score` gets its rows: an IDX file, an NPY file or a folder of pictures, never read as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from inferd_protocol.command import CommandError
from inferd_protocol.tensors import Tensor
from numpy.lib import format as npy

from inferd_client.files import images
from inferd_client.files.idx import GZIP_MAGIC, IdxFile
from inferd_client.metadata import TensorMetadata

Keys: TypeAlias = Sequence[int] | Sequence[str]
_NPY_MAGIC = b"\x93NUMPY"
MAPPED_BYTES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Source:
    """Rows and what each is called: its number under `row`, or its file's name under `file`.

    `batches(n)` yields keys and rows, n at a time and in order. It can be gone through once.
    """

    rows: int
    key: str
    batches: Callable[[int], Iterator[tuple[Keys, Tensor]]]


@contextlib.contextmanager
def open_source(path: Path, tensor: TensorMetadata) -> Iterator[Source]:
    """The rows in `path`; pictures come in the format of `tensor`.

    Raises CommandError for what is none of the three, or has no rows.
    """
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            source = _folder(path, tensor)
        else:
            try:
                with path.open("rb") as file:
                    magic = file.read(len(_NPY_MAGIC))
            except OSError as error:
                raise CommandError(f"cannot read {path}: {error.strerror}") from error
            if magic == _NPY_MAGIC:
                source = _npy(path)
            elif magic.startswith((GZIP_MAGIC, b"\0\0")):
                source = _idx(stack.enter_context(contextlib.closing(IdxFile(path))))
            else:
                raise CommandError(f"{path} is neither an IDX file, an NPY file nor a folder of pictures")
        if source.rows == 0:
            raise CommandError(f"{path} holds no rows")
        yield source


def _folder(path: Path, tensor: TensorMetadata) -> Source:
    wanted = images.image_format(tensor)
    if wanted.size is None:
        raise CommandError(
            f"input '{tensor.name}' of shape {list(tensor.shape)} takes pictures of any size, which a batch cannot "
            "mix: give the rows as .npy instead"
        )
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in images.SUFFIXES)

    def batches(size: int) -> Iterator[tuple[Keys, Tensor]]:
        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            yield [file.name for file in chunk], np.stack([images.read(file, wanted) for file in chunk])

    return Source(len(files), "file", batches)


def _idx(file: IdxFile) -> Source:
    def batches(size: int) -> Iterator[tuple[Keys, Tensor]]:
        return _numbered(file.batches(size))

    return Source(file.shape[0], "row", batches)


def _npy(path: Path) -> Source:
    try:
        whole = npy.open_memmap(path, mode="r")
    except (ValueError, OSError) as error:
        raise CommandError(f"cannot read {path} as an array: {error}") from error
    if whole.ndim == 0:
        raise CommandError(f"{path} holds a single number: expected an array whose first axis is the rows")
    if not whole.flags.c_contiguous:
        raise CommandError(f"{path} is stored column by column (Fortran order): save it with numpy.ascontiguousarray")
    rows, row_shape, dtype, offset = len(whole), whole.shape[1:], whole.dtype, whole.offset
    row_bytes = dtype.itemsize * int(np.prod(row_shape, dtype=np.int64))
    # The map of the whole was only needed for its header. A map of some batches gives its pages back when they are
    # done, where one map of everything would seem to fill the memory, row by row. One a batch costs as much as a call.
    del whole

    def chunks(size: int) -> Iterator[Tensor]:
        if not row_bytes:  # nothing can be mapped
            yield from (np.empty((min(size, rows - start), *row_shape), dtype) for start in range(0, rows, size))
            return
        mapped = max(1, MAPPED_BYTES // (size * row_bytes)) * size
        for start in range(0, rows, mapped):
            window = np.memmap(path, dtype, "r", offset + start * row_bytes, (min(mapped, rows - start), *row_shape))
            plain = window.view(np.ndarray)  # a memmap's slices are made by slow code of its own
            for first in range(0, len(plain), size):
                yield plain[first : first + size]

    def batches(size: int) -> Iterator[tuple[Keys, Tensor]]:
        return _numbered(chunks(size))

    return Source(rows, "row", batches)


def _numbered(batches: Iterator[Tensor]) -> Iterator[tuple[Keys, Tensor]]:
    start = 0
    for rows in batches:
        yield range(start, start + len(rows)), rows
        start += len(rows)
