"""The tensor datatypes of the protocol, and what each is called elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype under its names in the protocol, numpy, ONNX Runtime and config.pbtxt.

    `numpy` is the dtype of the array that carries it here: little-endian; BF16, which numpy lacks, as its bits in
    uint16; BYTES as an object array of `bytes`. `size` is bytes per element, None for BYTES. `contents` is the field of
    InferTensorContents that carries it, None where the protocol has none.
    """

    name: str
    numpy: np.dtype[np.generic]
    size: int | None
    onnx: str
    config: str
    contents: str | None


def _fixed(name: str, numpy: str, onnx: str, contents: str | None) -> Datatype:
    dtype = np.dtype(numpy).newbyteorder("<")
    return Datatype(name, dtype, dtype.itemsize, f"tensor({onnx})", f"TYPE_{name}", contents)


BYTES = Datatype("BYTES", np.dtype(object), None, "tensor(string)", "TYPE_STRING", "bytes_contents")
BF16 = _fixed("BF16", "uint16", "bfloat16", None)

DATATYPES: tuple[Datatype, ...] = (
    _fixed("BOOL", "bool", "bool", "bool_contents"),
    _fixed("UINT8", "uint8", "uint8", "uint_contents"),
    _fixed("UINT16", "uint16", "uint16", "uint_contents"),
    _fixed("UINT32", "uint32", "uint32", "uint_contents"),
    _fixed("UINT64", "uint64", "uint64", "uint64_contents"),
    _fixed("INT8", "int8", "int8", "int_contents"),
    _fixed("INT16", "int16", "int16", "int_contents"),
    _fixed("INT32", "int32", "int32", "int_contents"),
    _fixed("INT64", "int64", "int64", "int64_contents"),
    _fixed("FP16", "float16", "float16", None),
    BF16,
    _fixed("FP32", "float32", "float", "fp32_contents"),
    _fixed("FP64", "float64", "double", "fp64_contents"),
    BYTES,
)

BY_NAME = {datatype.name: datatype for datatype in DATATYPES}
BY_ONNX = {datatype.onnx: datatype for datatype in DATATYPES}
BY_CONFIG = {datatype.config: datatype for datatype in DATATYPES}
_BY_DTYPE = {datatype.numpy: datatype for datatype in DATATYPES if datatype not in (BF16, BYTES)}


def of_dtype(dtype: np.dtype[np.generic]) -> Datatype | None:
    """The datatype that carries arrays of `dtype`: BYTES for strings and objects, None where there is none."""
    if dtype.kind in "OSU":
        return BYTES
    return _BY_DTYPE.get(dtype.newbyteorder("<"))
