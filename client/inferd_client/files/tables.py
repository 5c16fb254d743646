"""What `inferd score` writes, by the extension of the file: CSV, Parquet or NPY, row by row and in bounded memory.

CSV and Parquet have a key column (`row` or `file`), then, where the model has a single output of a row of floats a row,
`predicted` (the index of the largest) and `label` (its name, where the server knows names), then the outputs.

- CSV: a column an element, `probabilities_0`, `probabilities_1`, ...; one element a row: `score`. With a header.
- Parquet: a column an output, a fixed-size list of its elements (row-major; the shape is in the column's metadata under
  `shape`); one element a row: a plain column. Row groups of up to 65536 rows.
- NPY: the one output as an array of [rows, ...] in the model's dtype, nothing else.

FP16 is written to CSV and Parquet as float32, whose readers are more; BYTES as text.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from inferd_protocol.command import CommandError
from inferd_protocol.tensors import Tensor
from numpy.lib import format as npy

from inferd_client.files.sources import Keys

ROW_GROUP_ROWS = 65536
ROW_GROUP_BYTES = 64 * 2**20
CHUNK_ROWS = 4096
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Layout:
    """What the table holds beside the outputs.

    `classify` is the output whose largest element is the prediction, None for no prediction; `labels` its labels by
    index, empty where there are none.
    """

    rows: int
    key: str
    classify: str | None
    labels: Mapping[int, str]


class Table(Protocol):
    """Takes the results in order. It belongs to an open file that somebody else closes."""

    def write(self, keys: Keys, outputs: Mapping[str, Tensor]) -> None:
        """Adds as many rows as there are keys."""

    def finish(self) -> None:
        """Writes what is left: the file is complete afterwards."""


def check_format(path: Path) -> None:
    """Raises CommandError for an extension that no format has."""
    if path.suffix.lower() not in _FORMATS:
        raise CommandError(f"{path} ends in none of {', '.join(_FORMATS)}, which choose the format")


def new_table(path: Path, file: IO[bytes], layout: Layout) -> Table:
    """A table in the format that the extension of `path` names, written to `file`."""
    return _FORMATS[path.suffix.lower()](file, layout)


class _Chunked(ABC):
    """Gathers results to chunks of thousands of rows: a batch's dozens cost Arrow as much, each time."""

    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._file = file
        self._layout = layout
        self._results: list[tuple[Keys, Mapping[str, Tensor]]] = []
        self._rows = 0
        self._bytes = 0

    def write(self, keys: Keys, outputs: Mapping[str, Tensor]) -> None:
        self._results.append((keys, outputs))
        self._rows += len(keys)
        self._bytes += sum(array.nbytes for array in outputs.values())
        if self._rows >= CHUNK_ROWS or self._bytes >= CHUNK_BYTES:
            self._write_gathered()

    def finish(self) -> None:
        if self._results:
            self._write_gathered()
        self._close()

    def _write_gathered(self) -> None:
        keys = _joined([keys for keys, _ in self._results])
        _, first = self._results[0]
        outputs = {name: np.concatenate([outputs[name] for _, outputs in self._results]) for name in first}
        self._results.clear()
        self._rows = self._bytes = 0
        self._write_chunk(keys, outputs)

    @abstractmethod
    def _write_chunk(self, keys: Keys, outputs: Mapping[str, Tensor]) -> None:
        """Adds the rows of a chunk."""

    @abstractmethod
    def _close(self) -> None:
        """Writes what is left."""


class _Csv(_Chunked):
    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        super().__init__(file, layout)
        self._writer: pyarrow.csv.CSVWriter | None = None

    def _write_chunk(self, keys: Keys, outputs: Mapping[str, Tensor]) -> None:
        columns = _leading(keys, outputs, self._layout)
        for name, array in outputs.items():
            columns |= _elements(name, array)
        batch = pa.RecordBatch.from_pydict(columns)
        if self._writer is None:
            # Arrow quotes every name of a header; this quotes what needs it, as in the rows.
            header = io.StringIO()
            csv.writer(header, lineterminator="\n").writerow(batch.schema.names)
            self._file.write(header.getvalue().encode())
            options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="needed")
            self._writer = pyarrow.csv.CSVWriter(self._file, batch.schema, write_options=options)
        self._writer.write_batch(batch)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Parquet(_Chunked):
    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        super().__init__(file, layout)
        self._writer: pyarrow.parquet.ParquetWriter | None = None
        self._waiting: list[pa.RecordBatch] = []

    def _write_chunk(self, keys: Keys, outputs: Mapping[str, Tensor]) -> None:
        columns = _leading(keys, outputs, self._layout)
        fields = [pa.field(name, column.type) for name, column in columns.items()]
        for name, array in outputs.items():
            shape = array.shape[1:]
            columns[name] = _lists(array)
            fields.append(pa.field(name, columns[name].type, metadata={"shape": json.dumps(shape)} if shape else None))
        self._waiting.append(pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields)))
        # A row group a chunk would make a file of many small row groups, which readers are slow with.
        rows = sum(batch.num_rows for batch in self._waiting)
        if rows >= ROW_GROUP_ROWS or sum(batch.nbytes for batch in self._waiting) >= ROW_GROUP_BYTES:
            self._write_group()

    def _close(self) -> None:
        if self._waiting:
            self._write_group()
        if self._writer is not None:
            self._writer.close()

    def _write_group(self) -> None:
        table = pa.Table.from_batches(self._waiting)
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=len(table))
        self._waiting.clear()


class _Npy:
    def __init__(self, file: IO[bytes], layout: Layout) -> None:
        self._file = file
        self._layout = layout
        self._begun = False

    def write(self, keys: Keys, outputs: Mapping[str, Tensor]) -> None:  # noqa: ARG002 - an array has no place for keys
        if len(outputs) != 1:
            raise CommandError(f"an NPY file holds one array: choose one of {', '.join(outputs)} with --outputs")
        (array,) = outputs.values()
        if array.dtype.kind == "O":
            raise CommandError("an NPY file holds numbers, and this output is text: write CSV or Parquet")
        if not self._begun:
            self._begun = True
            shape = (self._layout.rows, *array.shape[1:])
            header = {"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(self._file, header)
        self._file.write(np.ascontiguousarray(array).data)

    def finish(self) -> None:
        """Nothing is left to write."""


_FORMATS: dict[str, Callable[[IO[bytes], Layout], Table]] = {".csv": _Csv, ".parquet": _Parquet, ".npy": _Npy}


def _joined(keys: Sequence[Keys]) -> Keys:
    """The keys of batches that follow each other, as those of one."""
    first, last = keys[0], keys[-1]
    if isinstance(first, range) and isinstance(last, range):
        return range(first.start, last.stop)
    return [str(key) for batch in keys for key in batch]


def _leading(keys: Keys, outputs: Mapping[str, Tensor], layout: Layout) -> dict[str, pa.Array]:
    """The columns before the outputs."""
    columns = {layout.key: pa.array(keys, pa.int64() if isinstance(keys, range) else pa.string())}
    if layout.classify is not None:
        best = outputs[layout.classify].argmax(axis=1)
        columns["predicted"] = pa.array(best.astype(np.int64))
        if layout.labels:
            columns["label"] = pa.array([layout.labels.get(index) for index in best.tolist()], pa.string())
    return columns


def _elements(name: str, array: Tensor) -> dict[str, pa.Array]:
    """A column an element of the row."""
    if array[0].size == 1:
        return {name: _column(array.reshape(-1))}
    return {
        f"{name}_{'_'.join(map(str, index))}": _column(np.ascontiguousarray(array[(slice(None), *index)]))
        for index in np.ndindex(array.shape[1:])
    }


def _lists(array: Tensor) -> pa.Array:
    """One column: a fixed-size list a row, or the element itself where a row has only one."""
    flat = _column(array.reshape(-1))
    size = array[0].size
    return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)


def _column(array: Tensor) -> pa.Array:
    if array.dtype.kind == "O":
        return pa.array([element.decode(errors="backslashreplace") for element in array.tolist()], pa.string())
    return pa.array(array.astype(np.float32) if array.dtype == np.float16 else array)
