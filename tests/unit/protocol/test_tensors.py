from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from inferd_protocol.datatypes import BF16, BY_NAME, BYTES, DATATYPES, Datatype, of_dtype
from inferd_protocol.tensors import (
    TensorError,
    bf16_bits,
    bf16_values,
    decode_contents,
    decode_raw,
    element_count,
    encode_raw,
)

FIXED = [datatype for datatype in DATATYPES if datatype is not BYTES]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def fixed_tensors(draw: st.DrawFn) -> tuple[Datatype, np.ndarray]:
    datatype = draw(st.sampled_from(FIXED))
    return datatype, draw(hnp.arrays(datatype.numpy, draw(SHAPES)))


@st.composite
def bytes_tensors(draw: st.DrawFn) -> np.ndarray:
    shape = draw(SHAPES)
    elements = draw(st.lists(st.binary(max_size=20), min_size=math.prod(shape), max_size=math.prod(shape)))
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


@given(fixed_tensors())
def test_raw_round_trip_keeps_every_bit(case: tuple[Datatype, np.ndarray]) -> None:
    datatype, array = case
    raw = encode_raw(array, datatype)
    assert len(raw) == array.size * datatype.numpy.itemsize
    decoded = decode_raw("x", datatype, array.shape, raw)
    assert decoded.dtype == datatype.numpy
    assert decoded.shape == array.shape
    assert decoded.tobytes() == array.tobytes()


@given(bytes_tensors())
def test_bytes_round_trip(array: np.ndarray) -> None:
    decoded = decode_raw("x", BYTES, array.shape, encode_raw(array, BYTES))
    assert decoded.shape == array.shape
    assert decoded.tolist() == array.tolist()


@given(fixed_tensors(), st.binary(min_size=1, max_size=9))
def test_a_buffer_of_another_size_is_refused_with_both_sizes(case: tuple[Datatype, np.ndarray], extra: bytes) -> None:
    datatype, array = case
    raw = encode_raw(array, datatype) + extra
    with pytest.raises(TensorError, match=rf"'x'.*expects {array.nbytes} bytes, got {len(raw)}"):
        decode_raw("x", datatype, array.shape, raw)


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_a_bytes_tensor_or_refused(buffer: bytes, count: int) -> None:
    try:
        decoded = decode_raw("x", BYTES, [count], buffer)
    except TensorError:
        return
    assert encode_raw(decoded, BYTES) == buffer


def test_decoding_does_not_copy() -> None:
    buffer = np.arange(6, dtype=np.float32).tobytes()
    decoded = decode_raw("x", BY_NAME["FP32"], [2, 3], buffer)
    assert np.shares_memory(decoded, np.frombuffer(buffer, np.uint8))


def test_big_endian_and_strided_arrays_are_sent_little_endian_and_row_major() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    raw = encode_raw(array, BY_NAME["FP32"])
    assert struct.unpack("<6f", raw) == (0, 3, 1, 4, 2, 5)


def test_strings_are_sent_as_utf8() -> None:
    assert encode_raw(np.array(["é"]), BYTES) == b"\x02\x00\x00\x00" + "é".encode()


@pytest.mark.parametrize("buffer", [b"\x01\x00", b"\x05\x00\x00\x00ab", b"\x00\x00\x00\x00" * 2, b""])
def test_bytes_that_do_not_add_up_are_refused(buffer: bytes) -> None:
    with pytest.raises(TensorError, match="'words'"):
        decode_raw("words", BYTES, [1], buffer)


def test_negative_dimensions_are_refused() -> None:
    with pytest.raises(TensorError, match=r"\[-1, 3\].*no negative"):
        element_count("x", [-1, 3])


@pytest.mark.parametrize(
    ("name", "elements"),
    [("BOOL", [True, False]), ("INT8", [-128, 127]), ("UINT16", [0, 65535]), ("FP64", [0.1, -2.5]), ("INT64", [1, 2])],
)
def test_typed_contents(name: str, elements: list[object]) -> None:
    decoded = decode_contents("x", BY_NAME[name], [2], elements)
    assert decoded.dtype == BY_NAME[name].numpy
    assert decoded.tolist() == elements


def test_typed_contents_that_do_not_fit_the_datatype_are_refused() -> None:
    with pytest.raises(TensorError, match="do not fit INT8"):
        decode_contents("x", BY_NAME["INT8"], [1], [128])
    with pytest.raises(TensorError, match="FP16 has no typed contents"):
        decode_contents("x", BY_NAME["FP16"], [1], [1.0])


def test_typed_contents_of_another_count_are_refused() -> None:
    with pytest.raises(TensorError, match=r"expects 4 elements in contents.fp32_contents, got 3"):
        decode_contents("x", BY_NAME["FP32"], [2, 2], [1.0, 2.0, 3.0])


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_bf16_is_the_nearest_and_keeps_nan_and_sign(values: np.ndarray) -> None:
    back = bf16_values(bf16_bits(values))
    assert np.array_equal(np.isnan(back), np.isnan(values))
    finite = np.isfinite(values) & np.isfinite(back)
    # BF16 has 8 significant bits: half a unit in the last place of a value is at most 2**-8 of it.
    assert np.all(np.abs(back[finite] - values[finite]) <= np.maximum(np.abs(values[finite]) * 2.0**-8, 2.0**-133))
    assert np.array_equal(bf16_bits(back), bf16_bits(values))


def test_every_datatype_has_names_of_its_own() -> None:
    for key in ("name", "onnx", "config"):
        assert len({getattr(datatype, key) for datatype in DATATYPES}) == len(DATATYPES)


@pytest.mark.parametrize("datatype", [datatype for datatype in DATATYPES if datatype is not BF16])
def test_arrays_find_their_datatype(datatype: Datatype) -> None:
    assert of_dtype(datatype.numpy) is datatype


def test_strings_are_bytes_and_complex_numbers_are_nothing() -> None:
    assert of_dtype(np.dtype("U3")) is BYTES
    assert of_dtype(np.dtype("S3")) is BYTES
    assert of_dtype(np.dtype(">f8")) is BY_NAME["FP64"]
    assert of_dtype(np.dtype(complex)) is None
