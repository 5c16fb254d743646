"""What is encoded by hand is what protobuf encodes; what is read without it is what it reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from inferd_client import requests
from inferd_client.errors import BadResponse
from inferd_client.metadata import ModelMetadata, TensorMetadata
from inferd_client.results import InferResult, parse_infer
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol import wire
from inferd_protocol.datatypes import BF16, BY_NAME, BYTES, DATATYPES
from inferd_protocol.tensors import bf16_bits, bf16_values, encode_raw

NUMBERS = [datatype for datatype in DATATYPES if datatype not in (BF16, BYTES)]


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A datatype's name and an array as a user has it."""
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    datatype = draw(st.sampled_from(DATATYPES))
    if datatype is BYTES:
        elements = st.one_of(st.binary(max_size=200), st.text(max_size=20))
        array = np.empty(shape, object)
        array[...] = draw(npst.arrays(object, shape, elements=elements))
        return datatype.name, array
    dtype = np.dtype(np.float32) if datatype is BF16 else datatype.numpy
    array = draw(npst.arrays(dtype, shape, elements={"allow_nan": False} if dtype.kind == "f" else None))
    if draw(st.booleans()):
        array = array.T  # not laid out as on the wire
    if draw(st.booleans()):
        array = array.astype(array.dtype.newbyteorder(">"))
    return datatype.name, array


@given(
    given=st.lists(tensors(), min_size=1, max_size=3),
    request_id=st.text(max_size=10),
    parameters=st.dictionaries(
        st.text(min_size=1, max_size=5),
        st.one_of(st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=5)),
        max_size=3,
    ),
    outputs=st.none() | st.lists(st.sampled_from(["y", "z"]), unique=True, min_size=1),
    version=st.sampled_from(["", "3"]),
)
def test_a_request_is_byte_for_byte_what_protobuf_makes(
    given: list[tuple[str, np.ndarray]],
    request_id: str,
    parameters: dict[str, requests.ParameterValue],
    outputs: list[str] | None,
    version: str,
) -> None:
    message = pb.ModelInferRequest(model_name="m", model_version=version, id=request_id)
    metadata, arrays = [], {}
    for number, (name, array) in enumerate(given):
        datatype = BY_NAME[name]
        metadata.append(TensorMetadata(f"x{number}", datatype, (-1,) * array.ndim))
        arrays[f"x{number}"] = array
        message.inputs.add(name=f"x{number}", datatype=name, shape=array.shape)
        message.raw_input_contents.append(encode_raw(bf16_bits(array) if datatype is BF16 else array, datatype))
    for name, value in parameters.items():
        match value:
            case bool():
                message.parameters[name].bool_param = value
            case int() if value >= 2**63:
                message.parameters[name].uint64_param = value
            case int():
                message.parameters[name].int64_param = value
            case float():
                message.parameters[name].double_param = value
            case str():
                message.parameters[name].string_param = value
    for name in outputs or ():
        message.outputs.add(name=name)
    model = ModelMetadata("m", ("1",), "", tuple(metadata), ())

    plan = requests.plan(model, version, arrays, requests.wanted(outputs, None))
    own = requests.own_fields(request_id, parameters)
    built = plan.build(arrays, own, 2**30)

    # Deterministic, because a map's entries have no order otherwise.
    assert built == message.SerializeToString(deterministic=True)
    if plan.size is not None:
        assert len(built) == plan.size + len(own)


def answer(arrays: list[tuple[str, np.ndarray]], request_id: str = "", version: str = "1") -> bytes:
    message = pb.ModelInferResponse(model_name="m", model_version=version, id=request_id)
    for number, (name, array) in enumerate(arrays):
        message.outputs.add(name=f"y{number}", datatype=name, shape=array.shape)
        bits = bf16_bits(array) if name == "BF16" else array
        message.raw_output_contents.append(encode_raw(bits, BY_NAME[name]))
    return message.SerializeToString()


@given(first=st.lists(tensors(), max_size=3), data=st.data())
def test_a_known_layout_reads_what_parsing_reads(first: list[tuple[str, np.ndarray]], data: st.DataObject) -> None:
    _, layout = parse_infer(answer(first))
    if layout is None:
        assert any(name == "BYTES" for name, _ in first)
        return
    # Other elements in the same shapes, or something else altogether.
    second = data.draw(
        st.just([(name, np.zeros_like(array)) for name, array in first]) | st.lists(tensors(), max_size=3)
    )
    parsed, _ = parse_infer(answer(second))
    read = layout.read(answer(second))
    alike = [(name, array.shape) for name, array in first] == [(name, array.shape) for name, array in second]
    assert (read is not None) == alike
    if read is not None:
        assert list(read) == list(parsed)
        for name in parsed:
            np.testing.assert_array_equal(read[name], parsed[name])
            assert read[name].dtype == parsed[name].dtype
            assert read[name].flags.aligned


@st.composite
def byte_strings(draw: st.DrawFn) -> bytes:
    """An answer, mostly: its fields as protobuf wrote them, or moved, repeated, dropped, wrapped, spoilt, cut off."""
    message = pb.ModelInferResponse(model_name=draw(st.sampled_from(["m", "n"])), id=draw(st.sampled_from(["", "7"])))
    for number in range(draw(st.integers(0, 2))):
        message.outputs.add(name=f"y{number}", datatype=draw(st.sampled_from(["FP32", "BF16", "UINT8"])), shape=[2])
        message.raw_output_contents.append(
            draw(st.sampled_from([bytes(8), b"\x32\x02ab\x32\x02cd", bytes(4), b"\x32\x02ab", bytes(2), b"ab"]))
        )
    data = message.SerializeToString()
    parts = [data[field.start : field.end] for field in wire.fields(data) or ()]
    parts += draw(
        st.lists(st.sampled_from([*parts, b"\x7a\x04", b"\x7a\x0c", b"\x28\x01", b"\x7b", b"\x7c"]), max_size=2)
    )
    if draw(st.booleans()):
        parts = draw(st.permutations(parts))
    data = b"".join(parts)
    if draw(st.booleans()):
        data = data[: draw(st.integers(0, len(data)))]
    if data and draw(st.booleans()):
        spoilt = draw(st.integers(0, len(data) - 1))
        data = data[:spoilt] + draw(st.binary(min_size=1, max_size=1)) + data[spoilt + 1 :]
    return data


def same(first: InferResult, second: InferResult) -> bool:
    def facts(result: InferResult) -> object:
        arrays = [(name, array.dtype, array.shape, array.tobytes()) for name, array in result.items()]
        return arrays, result.model_name, result.model_version, result.id

    return facts(first) == facts(second)


@settings(max_examples=1000)
@given(byte_strings(), byte_strings(), st.data())
def test_whatever_a_layout_reads_is_what_protobuf_reads(learnt: bytes, other: bytes, data: st.DataObject) -> None:
    try:
        _, layout = parse_infer(learnt)
    except BadResponse:
        return
    if layout is None:
        return
    # Of the same length and close to it, where a layout could be fooled, and anything.
    position = data.draw(st.integers(0, max(0, len(learnt) - 1)))
    close = learnt[:position] + data.draw(st.binary(max_size=4)) + learnt[position + 4 :]
    for answered in (learnt, close, other):
        read = layout.read(answered)
        if read is not None:
            assert same(read, parse_infer(answered)[0])


def test_an_unknown_field_that_ends_in_the_buffers_bytes_is_no_buffer() -> None:
    """The last bytes are those of the answer's buffer, and yet another field's: other answers may differ in them."""
    plain = answer([("UINT8", np.zeros(2, np.uint8))])
    buffer = wire.prefix(6, 2) + bytes(2)
    result, layout = parse_infer(plain + wire.prefix(15, len(buffer)) + buffer)
    np.testing.assert_array_equal(result["y0"], [0, 0])
    assert layout is None


def test_an_answer_whose_buffers_come_first_has_no_layout() -> None:
    data = answer([("FP32", np.ones(3, np.float32))])
    buffer = wire.prefix(6, 12) + np.ones(3, np.float32).tobytes()
    assert data.endswith(buffer)
    result, layout = parse_infer(buffer + data[: -len(buffer)])
    np.testing.assert_array_equal(result["y0"], np.ones(3, np.float32))
    assert layout is None


def test_an_answer_of_another_version_does_not_have_the_layout() -> None:
    tensor = [("FP32", np.ones(3, np.float32))]
    _, layout = parse_infer(answer(tensor, version="1"))
    assert layout is not None
    assert layout.read(answer(tensor, version="2")) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.raw_output_contents.pop(), "1 outputs with 0 raw buffers"),
        (lambda m: setattr(m.outputs[0], "datatype", "INT3"), "unknown datatype INT3"),
        (lambda m: m.outputs[0].shape.append(2), "expects 24 bytes, got 12"),
    ],
)
def test_an_answer_that_contradicts_itself_is_refused(change: object, message: str) -> None:
    parsed = pb.ModelInferResponse.FromString(answer([("FP32", np.ones(3, np.float32))]))
    change(parsed)  # type: ignore[operator]
    with pytest.raises(BadResponse, match=message):
        parse_infer(parsed.SerializeToString())


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(BadResponse, match="is not one"):
        parse_infer(b"\xff\xff\xff")


@given(tensors())
def test_bf16_comes_out_as_the_float32_it_was_rounded_to(tensor: tuple[str, np.ndarray]) -> None:
    if tensor[0] == "BF16":
        result, _ = parse_infer(answer([tensor]))
        np.testing.assert_array_equal(result["y0"], bf16_values(bf16_bits(tensor[1]).reshape(tensor[1].shape)))
