"""The decoder that remembers heads against the codec that parses every message: whatever comes, they agree."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_protocol import grpc_service_pb2 as pb
from inferd_server.errors import ServerError
from inferd_server.frontend.codec import decode_message
from inferd_server.frontend.decoder import RequestDecoder
from inferd_server.request import Content, InferenceRequest, SequenceRequest

IDS = ["", "7", "another", "é", "x" * 127, "x" * 128]


def message(
    request_id: str = "", *, model: str = "m", version: str = "", fill: int = 1, shapes: tuple[tuple[int, ...], ...]
) -> bytes:
    """A request of FP32 inputs, whose bytes are all `fill`."""
    return pb.ModelInferRequest(
        model_name=model,
        model_version=version,
        id=request_id,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(name=f"x{place}", datatype="FP32", shape=shape)
            for place, shape in enumerate(shapes)
        ],
        raw_input_contents=[bytes([fill]) * (4 * int(np.prod(shape))) for shape in shapes],
    ).SerializeToString()


def plain(content: Content) -> object:
    return bytes(content) if isinstance(content, memoryview) else content.tolist()


def outcome(decoder: RequestDecoder, sent: bytes) -> object:
    try:
        request = decoder.decode(sent)
    except ServerError as error:
        return type(error), str(error)
    assert request.nbytes == len(sent)
    return astuple(request.form), request.id, [plain(content) for content in request.contents]


def parsed(sent: bytes) -> object:
    try:
        decoded = decode_message(sent)
    except ServerError as error:
        return type(error), str(error)
    return astuple(decoded.form), decoded.id, [plain(content) for content in decoded.contents]


def decode_twice(first: bytes, second: bytes) -> tuple[InferenceRequest, InferenceRequest]:
    decoder = RequestDecoder()
    return decoder.decode(first), decoder.decode(second)


@pytest.mark.parametrize("one", IDS[:-1])
@pytest.mark.parametrize("other", IDS[:-1])
def test_messages_that_look_alike_share_their_form_whatever_their_ids(one: str, other: str) -> None:
    shapes = ((2, 3), (2,))
    first, second = decode_twice(message(one, shapes=shapes), message(other, shapes=shapes, fill=2))
    assert first.form is second.form
    assert (first.id, second.id) == (one, other)
    assert [bytes(content) for content in second.contents] == [b"\2" * 24, b"\2" * 8]


@pytest.mark.parametrize(
    "other",
    [
        message(shapes=((1, 3),)),
        message(shapes=((3, 2),)),
        message(model="n", shapes=((2, 3),)),
        message(version="1", shapes=((2, 3),)),
    ],
)
def test_messages_that_differ_do_not(other: bytes) -> None:
    first, second = decode_twice(message(shapes=((2, 3),)), other)
    assert first.form is not second.form


def test_tensors_of_other_sizes_in_a_message_of_the_same_length_are_refused_as_ever() -> None:
    # The second tensor's length begins where the first one's last bytes were.
    good = message(shapes=((3,), (3,)))
    moved = pb.ModelInferRequest.FromString(good)
    moved.raw_input_contents[:] = [bytes(8), bytes(16)]
    bad = moved.SerializeToString()
    assert len(bad) == len(good)
    decoder = RequestDecoder()
    assert outcome(decoder, good) == parsed(good)
    assert outcome(decoder, bad) == parsed(bad)
    assert "expects 12 bytes, got 8" in str(parsed(bad))


def test_an_id_that_is_not_utf8_is_no_message_even_if_its_head_is_known() -> None:
    good = message("ab", shapes=((1,),))
    bad = good.replace(b"ab", b"\xff\xfe")
    decoder = RequestDecoder()
    decoder.decode(good)
    assert outcome(decoder, bad) == parsed(bad)


def test_what_is_remembered_is_bounded() -> None:
    decoder = RequestDecoder()
    for number in range(3000):
        decoder.decode(message(model=f"model-{number}", shapes=((1,),)))
    assert len(decoder._known) <= 1024


messages = st.builds(
    message,
    st.sampled_from(IDS),
    model=st.sampled_from(["m", "n", "", "x" * 130]),
    version=st.sampled_from(["", "1", "22"]),
    fill=st.integers(0, 255),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), max_size=3).map(tuple),
)


@st.composite
def disturbed(draw: st.DrawFn) -> bytes:
    """A message, or one with a byte changed, cut out, cut off or put in, or another one appended: fields twice."""
    sent = draw(messages)
    place = draw(st.integers(0, len(sent)))
    match draw(st.integers(0, 6)):
        case 0 if place < len(sent):
            return sent[:place] + draw(st.binary(min_size=1, max_size=1)) + sent[place + 1 :]
        case 1:
            return sent[:place] + sent[place + 1 :]
        case 2:
            return sent[:place]
        case 3:
            return sent[:place] + draw(st.binary(max_size=3)) + sent[place:]
        case 4:
            return sent + draw(messages)
        case _:
            return sent


@given(st.lists(disturbed(), min_size=1, max_size=6))
def test_any_sequence_of_messages_is_decoded_as_if_each_were_parsed(sequence: list[bytes]) -> None:
    decoder = RequestDecoder()
    for sent in sequence + sequence:
        assert outcome(decoder, sent) == parsed(sent)


def in_sequence(sequence_id: int, sent: bytes) -> bytes:
    request = pb.ModelInferRequest.FromString(sent)
    request.parameters["sequence_id"].int64_param = sequence_id
    return request.SerializeToString()


def test_steps_of_sequences_share_their_form_and_their_heads_are_not_remembered() -> None:
    decoder = RequestDecoder()
    plain_one = message(shapes=((2,),))
    ordinary = decoder.decode(plain_one)
    requests = [decoder.decode(in_sequence(number, plain_one)) for number in range(1, 2000)]
    assert len(decoder._known) == 1
    assert len({id(request.form) for request in requests}) == 1
    assert requests[0].form is not ordinary.form
    assert [request.step.id for request in requests if isinstance(request, SequenceRequest)] == [*range(1, 2000)]
    assert decoder.decode(plain_one).form is ordinary.form
    other = decoder.decode(in_sequence(1, message(shapes=((3,),))))
    assert other.form is not requests[0].form


def test_the_forms_of_steps_are_bounded() -> None:
    decoder = RequestDecoder()
    for number in range(3000):
        decoder.decode(in_sequence(1, message(model=f"model-{number}", shapes=((1,),))))
    assert len(decoder._sequence_forms) <= 1024
