"""Golden samples: a few inputs and the answers that the exported file gave to them, kept beside the model.

A zip file of .npy arrays, as numpy writes them, and never a pickle: `manifest` holds JSON as uint8,
{"format": 1, "inputs": [name, ...], "outputs": [name, ...], "tolerances": [[absolute, relative], ...]} with a tolerance
an output; `input_0`, `output_0` and so on are the arrays. Names stand in the manifest, so that they may be any.

Whoever wrote a file is not trusted: it is bounded before anything in it is believed.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inferd_protocol.tensors import Tensor

MOST_ROWS = 16
"""Rows of a model with a batch axis."""

MOST_BYTES = 64 * 1024 * 1024
"""Of the file, and of all its arrays together."""

_FORMAT = 1
_MANIFEST = "manifest"
_MOST_MEMBERS = 1024
_ENTRY = b"PK\x01\x02"
"""Begins the entry of a member in a zip file's directory, which is parsed whole when the file is opened."""
_KINDS = "biuf"


class GoldenError(ValueError):
    """A file that holds no golden samples: the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|found - expected| <= absolute + relative * |expected|, elementwise."""

    absolute: float
    relative: float


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Inputs and expected outputs by name; axis 0 is the row where the model has a batch axis.

    `tolerances` is by output. Values that are no floats must be equal, whatever it says.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    tolerances: Mapping[str, Tolerance]


def write(path: Path, golden: Golden) -> None:
    """Writes the samples, byte for byte the same for the same samples.

    Raises GoldenError where they are more than MOST_BYTES, or an array is not of booleans or numbers.
    """
    manifest = {
        "format": _FORMAT,
        "inputs": list(golden.inputs),
        "outputs": list(golden.outputs),
        "tolerances": [[golden.tolerances[name].absolute, golden.tolerances[name].relative] for name in golden.outputs],
    }
    arrays: dict[str, Any] = {_MANIFEST: np.frombuffer(json.dumps(manifest).encode(), np.uint8)}
    for kind, tensors in (("input", golden.inputs), ("output", golden.outputs)):
        for number, (name, array) in enumerate(tensors.items()):
            if array.dtype.kind not in _KINDS:
                raise GoldenError(f"'{name}' is {array.dtype}, where booleans or numbers were expected")
            arrays[f"{kind}_{number}"] = array
    size = sum(array.nbytes for array in arrays.values())
    if size > MOST_BYTES:
        raise GoldenError(f"the samples have {size} bytes, where at most {MOST_BYTES} were expected")
    np.savez_compressed(path, **arrays)


def read(path: Path) -> Golden:
    """Reads the samples, in a few times MOST_BYTES of memory at most, whatever the file says of itself.

    Raises GoldenError where it is torn, too large, or holds anything but samples; OSError where it cannot be read.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MOST_BYTES:
            raise GoldenError(f"it has {size} bytes, where at most {MOST_BYTES} were expected")
        content = stream.read(size)
    if content.count(_ENTRY) > _MOST_MEMBERS:
        raise GoldenError(f"it has more than {_MOST_MEMBERS} members")
    arrays = _arrays(content)
    try:
        manifest = json.loads(arrays.pop(_MANIFEST).tobytes())
        if manifest["format"] != _FORMAT:
            raise GoldenError(f"it has format {manifest['format']!r}, where {_FORMAT} was expected")
        inputs, outputs = (_named(arrays, manifest, kind) for kind in ("input", "output"))
        tolerances = [Tolerance(float(absolute), float(relative)) for absolute, relative in manifest["tolerances"]]
        by_output = dict(zip(outputs, tolerances, strict=True))
    except GoldenError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise GoldenError(f"its manifest is not one of golden samples: {type(error).__name__}: {error}") from error
    if arrays:
        raise GoldenError(f"it holds {', '.join(sorted(arrays))}, which its manifest does not name")
    for name, tolerance in by_output.items():
        # Also refuses NaN.
        if not (0 <= tolerance.absolute < math.inf and 0 <= tolerance.relative < math.inf):
            raise GoldenError(f"the tolerance of '{name}' is {tolerance}, where finite numbers from 0 were expected")
    return Golden(inputs, outputs, by_output)


def difference(found: Tensor, expected: Tensor, tolerance: Tolerance) -> float | None:
    """How far two arrays of one shape and dtype are apart at most; None where they agree within the tolerance.

    Values that are no floats must be equal. Infinities and NaNs agree with their like alone, and else differ by
    infinity.
    """
    if expected.dtype.kind != "f":
        if np.array_equal(found, expected):
            return None
        return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
    one, other = found.astype(np.float64), expected.astype(np.float64)
    if np.isclose(one, other, rtol=tolerance.relative, atol=tolerance.absolute, equal_nan=True).all():
        return None
    with np.errstate(invalid="ignore"):
        apart = np.where(one == other, 0.0, np.abs(one - other))
    apart[np.isnan(one) & np.isnan(other)] = 0.0
    return float(np.nan_to_num(apart, nan=math.inf, posinf=math.inf).max())


def _named(arrays: dict[str, Tensor], manifest: Mapping[str, Any], kind: str) -> Mapping[str, Tensor]:
    names: Sequence[Any] = manifest[f"{kind}s"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise GoldenError(f"its manifest has no list of names under '{kind}s'")
    if len(set(names)) != len(names):
        raise GoldenError(f"its manifest names an {kind} twice")
    return {name: arrays.pop(f"{kind}_{number}") for number, name in enumerate(names)}


def _arrays(content: bytes) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            # A member never unpacks to more than its entry says: what is more is cut off, and fails its checksum.
            size = sum(member.file_size for member in members)
            if size > MOST_BYTES:
                raise GoldenError(f"its arrays have {size} bytes, where at most {MOST_BYTES} were expected")
            for member in members:
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise GoldenError(f"'{member.filename}' in it is packed in a way that numpy does not use")
            return {member.filename.removesuffix(".npy"): _array(member, archive.read(member)) for member in members}
    except GoldenError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise GoldenError(f"it is no whole .npz file: {error}") from error


def _array(member: zipfile.ZipInfo, content: bytes) -> Tensor:
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = header(stream)
        # Before numpy makes room for the array: the header may claim any size.
        if dtype.kind not in _KINDS or math.prod(shape) * dtype.itemsize != len(content) - stream.tell():
            raise GoldenError(f"'{member.filename}' in it is {dtype} {list(shape)}, which is not what it holds")
        stream.seek(0)
        array: Tensor = np.lib.format.read_array(stream, allow_pickle=False)
    except GoldenError:
        raise
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError, tokenize.TokenError) as error:
        raise GoldenError(f"'{member.filename}' in it is no array of numbers: {error}") from error
    return array
