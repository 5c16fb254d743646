"""Registered regions: what may be registered, and what is left of it when clients misbehave."""

from __future__ import annotations

import functools
import gc
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.datatypes import BY_NAME
from inferd_server.config import ServerConfig, SharedMemory
from inferd_server.errors import (
    ConfigurationError,
    InvalidRequest,
    NotBuilt,
    RegionExists,
    RegionNotFound,
    RuntimeFailure,
    ServerError,
    TooManyRegions,
)
from inferd_server.frontend.codec import decode_message, encode_answer
from inferd_server.frontend.decoder import RequestDecoder
from inferd_server.request import AnswerForm, InferenceRequest, SharedMemoryRequest
from inferd_server.scheduling.batch import gather
from inferd_server.scheduling.work import Assembly, Layout, Work
from inferd_server.shared_memory import FOLDER, Range, Region, Regions, Window, most_regions
from support.shared_memory import shared_object

DATA = bytes(range(256))


@pytest.fixture
def key() -> Iterator[str]:
    with shared_object(256, DATA) as path:
        yield path.name


@pytest.fixture
def regions(key: str) -> Regions:
    """With region `r`: bytes 16 to 216 of DATA."""
    made = Regions(most=4)
    made.register("r", key, 16, 200)
    return made


def open_files() -> set[str]:
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            # The listing's own.
            continue
    return found


def test_a_window_reads_and_writes_its_bytes_and_no_others(regions: Regions, key: str) -> None:
    window = regions.window("x", Range("r", 4, 8))
    assert window.read() == DATA[20:28]
    assert window.part(2, 5).read() == DATA[22:25]
    window.write(memoryview(b"abc"))
    assert (FOLDER / key).read_bytes() == DATA[:20] + b"abc" + DATA[23:]
    assert regions.window("x", Range("r", 200, 0)).read() == b""


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_key_is_what_shm_open_takes(key: str, slash: str) -> None:
    regions = Regions(most=1)
    regions.register("r", slash + key, 0, 256)
    assert [(region.name, region.key, region.offset, region.byte_size) for region in regions.status()] == [
        ("r", slash + key, 0, 256)
    ]


@pytest.mark.parametrize(
    "hostile",
    ["", "/", ".", "..", "/..", "//x", "../etc/passwd", "/../etc/passwd", "a/b", "x\0y", "x" * 256, "é" * 128],
)
def test_a_key_that_is_a_path_or_no_name_is_refused(hostile: str) -> None:
    regions = Regions(most=1)
    with pytest.raises(InvalidRequest, match="expected the name of a shared memory object"):
        regions.register("r", hostile, 0, 1)
    assert not regions.status()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    target.write_bytes(b"secret")
    with shared_object(1) as path:
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(InvalidRequest, match="cannot be opened: Too many levels of symbolic links"):
            Regions(most=1).register("r", path.name, 0, 6)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(make: Any) -> None:
    with shared_object(1) as path:
        path.unlink()
        make(path)
        try:
            with pytest.raises(InvalidRequest, match=r"no shared memory object|Is a directory"):
                Regions(most=1).register("r", path.name, 0, 1)
        finally:
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_what_the_server_may_not_open_is_refused(key: str) -> None:
    (FOLDER / key).chmod(0)
    with pytest.raises(InvalidRequest, match="cannot be opened: Permission denied"):
        Regions(most=1).register("r", key, 0, 1)


@pytest.mark.parametrize(
    ("name", "offset", "byte_size", "error", "text"),
    [
        ("", 0, 1, InvalidRequest, "expected to have 1 to 1024 bytes"),
        ("x" * 1025, 0, 1, InvalidRequest, "expected to have 1 to 1024 bytes"),
        ("n", 0, 0, InvalidRequest, "1 byte or more from offset 0 or more, got 0 from 0"),
        ("n", 0, 257, InvalidRequest, "within the 256 bytes of '.*', got 257 bytes from offset 0"),
        ("n", 256, 1, InvalidRequest, "got 1 bytes from offset 256"),
        ("n", 2**64 - 1, 2**64 - 1, InvalidRequest, "within the 256 bytes"),
        ("r", 0, 1, RegionExists, "region 'r' is registered already: unregister it first"),
    ],
)
def test_a_registration_that_makes_no_sense(
    regions: Regions, key: str, name: str, offset: int, byte_size: int, error: type[ServerError], text: str
) -> None:
    before = open_files()
    with pytest.raises(error, match=text):
        regions.register(name, key, offset, byte_size)
    assert [region.name for region in regions.status()] == ["r"]
    assert open_files() == before


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(InvalidRequest, match="'gone', which cannot be opened: No such file"):
        Regions(most=1).register("r", "gone", 0, 1)


def test_regions_are_bounded(regions: Regions, key: str) -> None:
    for number in range(3):
        regions.register(str(number), key, 0, 1)
    with pytest.raises(TooManyRegions, match="4 shared memory regions are registered"):
        regions.register("more", key, 0, 1)
    regions.unregister("0")
    regions.register("more", key, 0, 1)
    assert 0 < most_regions() <= 1024


def test_one_of_many_who_register_a_name_at_once_gets_it(key: str) -> None:
    regions = Regions(most=100)
    outcomes: list[str] = []
    together = threading.Barrier(16)

    def register(size: int) -> None:
        together.wait()
        try:
            regions.register("r", key, 0, size)
            outcomes.append("registered")
        except RegionExists:
            outcomes.append("refused")

    threads = [threading.Thread(target=register, args=(size,)) for size in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 15 + ["registered"]


def test_an_unregistered_region_is_open_until_its_last_user_is_done(regions: Regions, key: str) -> None:
    path = str(FOLDER / key)
    window = regions.window("x", Range("r", 0, 4))
    regions.unregister("r")
    regions.unregister("never there")
    assert window.read() == DATA[16:20]
    assert path in open_files()
    with pytest.raises(RegionNotFound, match="tensor 'x' is in shared memory region 'r', which is not registered"):
        regions.window("x", Range("r", 0, 4))
    with pytest.raises(RegionNotFound, match="region 'r' is not registered"):
        regions.status("r")
    del window
    assert path not in open_files()
    regions.register("r", key, 0, 1)
    regions.unregister_all()
    assert not regions.status()
    assert path not in open_files()


@pytest.mark.parametrize("size", [0, 22])
def test_a_file_that_was_cut_short_is_an_error_and_no_signal(regions: Regions, key: str, size: int) -> None:
    window = regions.window("x", Range("r", 0, 8))
    os.truncate(FOLDER / key, size)
    with pytest.raises(InvalidRequest, match=f"200 bytes from 16 of '{key}', which has become shorter"):
        window.read()
    with pytest.raises(InvalidRequest, match="has become shorter"):
        window.write(memoryview(b"x" * 8))
    assert (FOLDER / key).stat().st_size == size, "a write must not make it longer again"


def test_a_write_that_the_system_refuses_is_an_error_of_the_call(key: str) -> None:
    read_only = Region("r", key, 0, 256, os.open(FOLDER / key, os.O_RDONLY))
    with pytest.raises(RuntimeFailure, match="shared memory region 'r' cannot be written: Bad file descriptor"):
        Window(read_only, 0, 8).write(memoryview(b"x" * 8))


def test_a_window_out_of_its_region_is_refused(regions: Regions) -> None:
    for offset, size in ((0, 201), (200, 1), (2**63 - 1, 2**63 - 1)):
        with pytest.raises(InvalidRequest, match="'x' is expected within the 200 bytes of shared memory region 'r', "):
            regions.window("x", Range("r", offset, size))


def test_where_it_is_switched_off_nothing_can_be_registered(key: str) -> None:
    regions = Regions(most=1, refusal="off")
    assert not regions.enabled
    with pytest.raises(NotBuilt, match="off"):
        regions.register("r", key, 0, 1)
    regions.unregister("r")
    regions.unregister_all()
    assert not regions.status()


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, True),
        ({"grpc_address": "::1"}, True),
        ({"grpc_address": "127.8.8.8"}, True),
        ({"grpc_address": "localhost"}, True),
        ({"grpc_address": "0.0.0.0"}, False),
        ({"grpc_address": "example.com"}, False),
        ({"grpc_address": "0.0.0.0", "shared_memory": SharedMemory.ON}, True),
        ({"workers": 2}, False),
        ({"shared_memory": SharedMemory.OFF}, False),
    ],
)
def test_who_may_register(settings: dict[str, Any], allowed: bool) -> None:
    config = ServerConfig(model_repository=Path(), **settings)
    assert (not config.shared_memory_refusal) is allowed


def test_several_workers_cannot_have_it() -> None:
    with pytest.raises(ConfigurationError, match="--shared-memory on needs --workers 1"):
        ServerConfig(model_repository=Path(), workers=2, shared_memory=SharedMemory.ON)


# Messages


def parameters(region: object = "r", offset: object = None, byte_size: object = 8) -> dict[str, pb.InferParameter]:
    made = {}
    for name, value in (("region", region), ("offset", offset), ("byte_size", byte_size)):
        if isinstance(value, str):
            made[f"shared_memory_{name}"] = pb.InferParameter(string_param=value)
        elif isinstance(value, int):
            made[f"shared_memory_{name}"] = pb.InferParameter(int64_param=value)
    return made


def message(
    *places: dict[str, pb.InferParameter] | None,
    outputs: tuple[dict[str, pb.InferParameter] | None, ...] = (),
    raw: tuple[bytes, ...] = (),
    request_id: str = "",
    datatype: str = "FP32",
    contents: pb.InferTensorContents | None = None,
) -> bytes:
    """A request of an input of two elements for each place: in the message where it is None."""
    return pb.ModelInferRequest(
        model_name="m",
        id=request_id,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=f"x{number}", datatype=datatype, shape=[2], parameters=place, contents=contents
            )
            for number, place in enumerate(places)
        ],
        outputs=[
            pb.ModelInferRequest.InferRequestedOutputTensor(name=f"y{number}", parameters=place)
            for number, place in enumerate(outputs)
        ],
        raw_input_contents=raw,
    ).SerializeToString(deterministic=True)


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
    regions.unregister("r")
    with pytest.raises(RegionNotFound):
        decoder.decode(message(*places, raw=raw, outputs=outputs, request_id="2"))
    regions.register("r", key, 17, 100)
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
    regions.unregister_all()
    del first, again
    assert path not in open_files(), "what is remembered must not keep regions open"


def test_a_head_that_names_another_range_is_another_one(regions: Regions) -> None:
    decoder = RequestDecoder(regions)
    for offset in (8, 16, 8):
        assert contents(decoder.decode(message(parameters(offset=offset)))) == [DATA[16 + offset : 24 + offset]]


def test_text_in_shared_memory() -> None:
    with shared_object(64, b"\1\0\0\0a\2\0\0\0bc") as path:
        regions = Regions(most=1)
        regions.register("r", path.name, 0, 64)
        decoded = decode_message(message(parameters(byte_size=11), datatype="BYTES"), regions)
    (array,) = decoded.contents
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [b"a", b"bc"]


# Batches


class Nobody:
    deadline_ns = None

    def cancelled(self) -> bool:
        return False

    def send(self, form: object, outputs: object) -> None:
        raise AssertionError

    fail = send


def work(*parts: Any, rows: int) -> Work:
    layout = Layout.of([np.dtype("<i2")] * len(parts), [(2,)] * len(parts), batched=True)
    return Work(parts, rows, layout, Nobody(), lambda reply, outputs: None)  # type: ignore[arg-type]


def numbers(start: int, rows: int) -> list[list[int]]:
    flat: list[list[int]] = np.frombuffer(DATA, "<i2", rows * 2, start).reshape(rows, 2).tolist()
    return flat


def test_shared_memory_is_read_when_the_batch_is_gathered(regions: Regions, key: str) -> None:
    alone = work(regions.window("x", Range("r", 0, 12)), rows=3)
    os.pwrite(regions.status("r")[0].file, DATA[100:102], 16)
    (array,) = gather([(alone, 0, 3)], 3)
    assert array.tolist() == [[numbers(100, 1)[0][0], numbers(16, 1)[0][1]], *numbers(20, 2)]


def test_requests_in_shared_memory_and_others_share_a_batch(regions: Regions) -> None:
    window = regions.window("x", Range("r", 0, 8))
    sent = memoryview(DATA[40:48])
    typed = np.frombuffer(DATA, "<i2", 4, 60).reshape(2, 2)
    slices = [(work(part, sent, rows=2), 0, 2) for part in (window, sent, typed)]
    first, second = gather(slices, 6)
    assert first.tolist() == [*numbers(16, 2), *numbers(40, 2), *numbers(60, 2)]
    assert second.tolist() == numbers(40, 2) * 3


def test_a_split_request_reads_its_rows_and_no_others(regions: Regions, key: str) -> None:
    whole = work(regions.window("x", Range("r", 0, 24)), rows=6)
    whole.assembly = Assembly(6)
    other = work(memoryview(DATA[40:44]), rows=1)
    os.truncate(FOLDER / key, 16 + 16)
    assert gather([(whole, 1, 4)], 3)[0].tolist() == numbers(20, 3)
    assert gather([(whole, 2, 4), (other, 0, 1)], 3)[0].tolist() == [*numbers(24, 2), *numbers(40, 1)]
    with pytest.raises(InvalidRequest, match="has become shorter"):
        gather([(whole, 4, 6)], 2)


def test_a_scalar_is_read_too(regions: Regions) -> None:
    layout = Layout.of([np.dtype("<i2")], [()], batched=False)
    assert layout.array(0, regions.window("x", Range("r", 0, 2)), 1) == numbers(16, 1)[0][0]


# Answers

FP32, BYTES = BY_NAME["FP32"], BY_NAME["BYTES"]


def test_an_output_is_written_to_its_place_and_the_others_are_answered(regions: Regions, key: str) -> None:
    y, z, text = np.ones((2, 2), np.float32), np.zeros((2, 1), np.float32), np.array([b"ab"], object)
    places = (regions.window("y", Range("r", 8, 16)), None, regions.window("t", Range("r", 100, 10)))
    form = AnswerForm("m", "3", (("y", FP32), ("z", FP32), ("t", BYTES)), places)
    response = pb.ModelInferResponse.FromString(encode_answer(form, "7", [y, z, text]))
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "7")
    assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
        ("y", "FP32", [2, 2]),
        ("z", "FP32", [2, 1]),
        ("t", "BYTES", [1]),
    ]
    assert list(response.raw_output_contents) == [b"", z.tobytes(), b""]
    told = response.outputs[0].parameters
    assert {name: value.string_param or value.int64_param for name, value in told.items()} == {
        "shared_memory_region": "r",
        "shared_memory_offset": 8,
        "shared_memory_byte_size": 16,
    }
    assert not response.outputs[1].parameters
    assert response.outputs[2].parameters["shared_memory_byte_size"].int64_param == 6
    assert (FOLDER / key).read_bytes() == DATA[:24] + y.tobytes() + DATA[40:116] + b"\2\0\0\0ab" + DATA[122:]


def test_an_output_that_does_not_fit_is_refused_and_nothing_is_written(regions: Regions, key: str) -> None:
    places = (regions.window("y", Range("r", 0, 16)), regions.window("z", Range("r", 16, 7)))
    form = AnswerForm("m", "3", (("y", FP32), ("z", FP32)), places)
    with pytest.raises(InvalidRequest, match="'z' has 8 bytes, and 7 bytes of shared memory region 'r' are given"):
        encode_answer(form, "", [np.ones(4, np.float32), np.ones(2, np.float32)])
    assert (FOLDER / key).read_bytes() == DATA


def test_an_output_without_elements_needs_no_room(regions: Regions) -> None:
    form = AnswerForm("m", "3", (("y", FP32),), (regions.window("y", Range("r", 0, 0)),))
    response = pb.ModelInferResponse.FromString(encode_answer(form, "", [np.ones((0, 2), np.float32)]))
    assert list(response.raw_output_contents) == [b""]


def test_a_request_finishes_in_a_region_that_was_unregistered_meanwhile(regions: Regions, key: str) -> None:
    sent = message(parameters(), outputs=(parameters(offset=100),))
    request = RequestDecoder(regions).decode(sent)
    assert isinstance(request, SharedMemoryRequest)
    regions.unregister_all()
    (FOLDER / key).unlink()
    layout = Layout.of([np.dtype("<f4")], [()], batched=True)
    waiting = Work(request.contents, 2, layout, Nobody(), lambda reply, outputs: None)  # type: ignore[arg-type]
    (array,) = gather([(waiting, 0, 2)], 2)
    assert array.tobytes() == DATA[16:24]
    (place,) = request.places
    assert place is not None
    encode_answer(AnswerForm("m", "3", (("y0", FP32),), request.places), "", [array])
    assert place.read() == DATA[16:24]


# Whatever comes

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
        regions.register("r", path.name, 16, 200)
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
