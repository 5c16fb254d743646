"""IDX files, the format of MNIST and its relatives, plain or compressed with gzip, read from front to back.

A header of two zero bytes, a code for the type, the number of axes, and the length of each axis as a 4-byte big-endian
integer; then the elements, big-endian, row-major.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from inferd_protocol.command import CommandError
from inferd_protocol.tensors import Tensor

GZIP_MAGIC = b"\x1f\x8b"
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class IdxFile:
    """An open IDX file; `shape` is that of the whole, its first axis the rows. Close it.

    Raises CommandError for a file that is none, is cut off, or goes on after its last element.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
        # Closed by `close`, not by a block: the rows are read while others work on the earlier ones.
        opener: Callable[[Path, str], Any] = gzip.open if compressed else open
        self._file: IO[bytes] = opener(path, "rb")
        try:
            self.dtype, self.shape = self._header()
        except BaseException:
            self._file.close()
            raise

    def batches(self, size: int) -> Iterator[Tensor]:
        """The rows, `size` at a time, in the machine's byte order."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        for start in range(0, self.shape[0], size):
            count = min(size, self.shape[0] - start)
            data = np.frombuffer(self._read(count * row), self.dtype).reshape(count, *self.shape[1:])
            yield data.astype(self.dtype.newbyteorder("="), copy=False)
        if self._file.read(1):
            raise CommandError(f"{self._path} goes on after the {self.shape[0]} rows that its header announces")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _header(self) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
        zeros, code, axes = struct.unpack(">HBB", self._read(4))
        if zeros != 0 or code not in _TYPES or axes == 0:
            raise CommandError(f"{self._path} is no IDX file: its first four bytes are not those of one")
        return np.dtype(_TYPES[code]), struct.unpack(f">{axes}I", self._read(4 * axes))

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise CommandError(f"cannot read {self._path}: {error}") from error
        if len(data) != size:
            raise CommandError(f"{self._path} is cut off: {size} more bytes were expected, {len(data)} are there")
        return data
