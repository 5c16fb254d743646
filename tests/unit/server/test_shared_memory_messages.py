"""Messages that name ranges of shared memory: what is read from them, remembered of them, and refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_protocol import grpc_service_pb2 as pb
from inferd_server.errors import (
    InvalidRequest,
    RegionNotFound,
    ServerError,
)
from inferd_server.frontend.codec import decode_message
from inferd_server.frontend.decoder import RequestDecoder
from inferd_server.request import InferenceRequest, SharedMemoryRequest
from inferd_server.shared_memory.regions import Regions, Window
from inferd_server.shared_memory.system import FOLDER, SystemRegion, register
from support.shared_memory import DATA, message, open_files, parameters, shared_object


@pytest.mark.parametrize(
    ("sent", "error", "text"),
    [
        (message(parameters(byte_size=7)), InvalidRequest, r"'x0' .*FP32 and shape \[2\] expects 8 bytes, got 7"),
        (message(parameters(byte_size=None)), InvalidRequest, "shared_memory_region without shared_memory_byte_size"),
        (message(parameters(region=None)), InvalidRequest, "shared_memory_byte_size without shared_memory_region"),
        (message(parameters(region="")), InvalidRequest, "shared_memory_region of tensor 'x0' is expected to be a nam"),
        (message(parameters(region=3)), InvalidRequest, "shared_memory_region of tensor 'x0' is expected to be a name"),
        (message(parameters(byte_size="8")), InvalidRequest, "shared_memory_byte_size .* is expected to be an int64"),
        (message(parameters(byte_size=-8)), InvalidRequest, "shared_memory_byte_size of tensor 'x0' .*, got -8"),
        (message(parameters(offset=-1)), InvalidRequest, "shared_memory_offset of tensor 'x0' is expected .*, got -1"),
        (message(parameters(offset=193)), InvalidRequest, "within the 200 bytes .*, got 8 bytes from offset 193"),
        (message(parameters(region="s")), RegionNotFound, "tensor 'x0' is in shared memory region 's', which is not"),
        (message(parameters(), raw=(bytes(8),)), InvalidRequest, "hold 0 buffers, one an input that is not in shared"),
        (message(parameters(), None, raw=(bytes(8),) * 2), InvalidRequest, "to hold 1 buffers, one an input that"),
        (message(parameters(), None), InvalidRequest, "'x1' of shape .* in contents.fp32_contents, got 0"),
        (
            message(parameters(), contents=pb.InferTensorContents(fp32_contents=[1, 2])),
            InvalidRequest,
            "'x0' has typed contents and is in shared memory: expected only one",
        ),
        (message(None, raw=(bytes(8),), outputs=(parameters(region="s"),)), RegionNotFound, "tensor 'y0' is in shared"),
        (
            message(
                None,
                raw=(bytes(8),),
                outputs=({**parameters(), "classification": pb.InferParameter(int64_param=1)},),
            ),
            InvalidRequest,
            "output 'y0' has parameters classification and shared_memory_region: expected only one",
        ),
        (message(parameters(), datatype="BYTES"), InvalidRequest, "tensor 'x0': element 0 expects"),
    ],
)
def test_what_is_refused_is_refused_every_time(
    regions: Regions, sent: bytes, error: type[ServerError], text: str
) -> None:
    decoder = RequestDecoder(regions)
    for _ in range(2):
        with pytest.raises(error, match=text):
            decoder.decode(sent)


def contents(request: InferenceRequest) -> list[bytes]:
    return [bytes(part.read() if isinstance(part, Window) else part) for part in request.contents]


@pytest.mark.parametrize("raw", [(), (b"a" * 8,), (b"a" * 8, b"b" * 8)])
@pytest.mark.parametrize("outputs", [(), (parameters(offset=32),), (None, parameters(offset=40))])
def test_heads_with_shared_memory_are_remembered_and_regions_are_not(
    regions: Regions, key: str, raw: tuple[bytes, ...], outputs: tuple[dict[str, pb.InferParameter] | None, ...]
) -> None:
    places = (parameters(offset=8), *[None] * len(raw), parameters())
    decoder = RequestDecoder(regions)
    first = decoder.decode(message(*places, raw=raw, outputs=outputs, request_id="1"))
    regions.unregister("r", SystemRegion)
    with pytest.raises(RegionNotFound):
        decoder.decode(message(*places, raw=raw, outputs=outputs, request_id="2"))
    register(regions, "r", key, 17, 100)
    again = decoder.decode(message(*places, raw=tuple(part.upper() for part in raw), outputs=outputs, request_id="3"))
    assert again.form is first.form
    assert again.id == "3"
    assert contents(first) == [DATA[24:32], *raw, DATA[16:24]]
    assert contents(again) == [DATA[25:33], *[part.upper() for part in raw], DATA[17:25]]
    assert isinstance(again, SharedMemoryRequest) is bool(outputs)
    if isinstance(again, SharedMemoryRequest):
        assert (
            [place and place.offset for place in again.places] == [None, 40][-len(outputs) :]
            if len(outputs) > 1
            else [32]
        )
    path = str(FOLDER / key)
    regions.unregister_all(SystemRegion)
    del first, again
    assert path not in open_files(), "what is remembered must not keep regions open"


def test_a_head_that_names_another_range_is_another_one(regions: Regions) -> None:
    decoder = RequestDecoder(regions)
    for offset in (8, 16, 8):
        assert contents(decoder.decode(message(parameters(offset=offset)))) == [DATA[16 + offset : 24 + offset]]


def test_text_in_shared_memory() -> None:
    with shared_object(64, b"\1\0\0\0a\2\0\0\0bc") as path:
        regions = Regions(most=1)
        register(regions, "r", path.name, 0, 64)
        decoded = decode_message(message(parameters(byte_size=11), datatype="BYTES"), regions)
    (array,) = decoded.contents
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [b"a", b"bc"]


known_places = st.sampled_from(
    [None, parameters(), parameters(offset=8), parameters(region="s"), parameters(offset=193)]
)
requests = st.builds(
    lambda places, outputs, raw, request_id: message(*places, outputs=outputs, raw=raw, request_id=request_id),
    st.lists(known_places, max_size=3),
    st.lists(known_places, max_size=2).map(tuple),
    st.lists(st.sampled_from([b"a" * 8, b"b" * 8]), max_size=3).map(tuple),
    st.sampled_from(["", "7", "another"]),
)


@st.composite
def disturbed(draw: st.DrawFn) -> bytes:
    """A message, or one with a byte changed, or another one appended: fields twice."""
    sent = draw(requests)
    place = draw(st.integers(0, len(sent) - 1))
    match draw(st.integers(0, 4)):
        case 0:
            return sent[:place] + draw(st.binary(min_size=1, max_size=1)) + sent[place + 1 :]
        case 1:
            return sent + draw(requests)
        case _:
            return sent


def told(decode: Callable[[], tuple[Any, ...]]) -> object:
    try:
        form, request_id, parts, places = decode()
    except ServerError as error:
        return type(error), str(error)
    content = [
        part.tolist() if isinstance(part, np.ndarray) else bytes(part.read() if isinstance(part, Window) else part)
        for part in parts
    ]
    return astuple(form), request_id, content, [place and (place.offset, place.nbytes) for place in places]


@given(st.lists(disturbed(), min_size=1, max_size=6))
def test_any_sequence_of_messages_is_decoded_as_if_each_were_parsed(sequence: list[bytes]) -> None:
    with shared_object(256, DATA) as path:
        regions = Regions(most=1)
        register(regions, "r", path.name, 16, 200)
        decoder = RequestDecoder(regions)

        def remembered(sent: bytes) -> tuple[Any, ...]:
            request = decoder.decode(sent)
            places = request.places if isinstance(request, SharedMemoryRequest) else ()
            return request.form, request.id, request.contents, places

        def parsed(sent: bytes) -> tuple[Any, ...]:
            decoded = decode_message(sent, regions)
            places = [
                place and regions.window(output.name, place)
                for output, place in zip(decoded.form.outputs, decoded.outputs_in, strict=False)
            ]
            return decoded.form, decoded.id, decoded.contents, places

        for sent in sequence + sequence:
            assert told(functools.partial(remembered, sent)) == told(functools.partial(parsed, sent))
