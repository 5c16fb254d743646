"""Tensors in shared memory on their way: gathered into batches, answered in place."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.datatypes import BY_NAME
from inferd_server.errors import (
    InvalidRequest,
)
from inferd_server.frontend.codec import encode_answer
from inferd_server.frontend.decoder import RequestDecoder
from inferd_server.request import AnswerForm, SharedMemoryRequest
from inferd_server.scheduling.batch import gather
from inferd_server.scheduling.work import Assembly, Layout, Work
from inferd_server.shared_memory.regions import Range, Regions
from inferd_server.shared_memory.system import FOLDER, SystemRegion
from support.shared_memory import DATA, message, parameters


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
    os.pwrite(regions.status(SystemRegion, "r")[0].file, DATA[100:102], 16)
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
    regions.unregister_all(SystemRegion)
    (FOLDER / key).unlink()
    layout = Layout.of([np.dtype("<f4")], [()], batched=True)
    waiting = Work(request.contents, 2, layout, Nobody(), lambda reply, outputs: None)  # type: ignore[arg-type]
    (array,) = gather([(waiting, 0, 2)], 2)
    assert array.tobytes() == DATA[16:24]
    (place,) = request.places
    assert place is not None
    encode_answer(AnswerForm("m", "3", (("y0", FP32),), request.places), "", [array])
    assert place.read() == DATA[16:24]
