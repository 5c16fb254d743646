"""Regions of a GPU's memory, on a CUDA that is made of the host's: what is lent, read, written, refused, given back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from inferd_protocol import grpc_service_pb2 as pb
from inferd_server.errors import InvalidRequest, LoadError, NotBuilt, RegionExists, RegionNotFound, RuntimeFailure
from inferd_server.frontend.decoder import RequestDecoder
from inferd_server.frontend.shared_memory import CudaSharedMemory, SystemSharedMemory
from inferd_server.runtime.cuda_regions import CudaIpc, CudaRegion, CudaRegions
from inferd_server.shared_memory.regions import Range, Regions
from inferd_server.shared_memory.system import SystemRegion, register
from support.shared_memory import DATA, message, parameters

HANDLE = bytes(range(64))
STREAM = 7


class Cuda:
    """The functions of both libraries, over one allocation of 256 bytes that HANDLE lends."""

    def __init__(self) -> None:
        self.memory = np.frombuffer(bytearray(DATA), np.uint8)
        self.closed: list[int] = []
        self.queued: list[Any] = []
        self.fails = self.unknown = False
        self.library = SimpleNamespace(
            cudaGetErrorString=lambda status: f"error {status}".encode(),
            cudaStreamCreateWithFlags=self._stream,
            cudaIpcOpenMemHandle=self._open,
            cudaIpcCloseMemHandle=lambda address: self.closed.append(address.value),
            cudaMemcpyAsync=self._copy,
            cudaStreamSynchronize=self._wait,
        )
        self.driver = SimpleNamespace(cuMemGetAddressRange_v2=self._range)

    def ipc(self) -> CudaIpc:
        return CudaIpc(self.library, self.driver)  # type: ignore[arg-type]

    def _stream(self, stream: Any, _: int) -> int:
        stream._obj.value = STREAM
        return 0

    def _open(self, address: Any, handle: Any, flags: int) -> int:
        if bytes(handle.reserved) != HANDLE or flags != 1:
            return 400
        address._obj.value = self.memory.ctypes.data
        return 0

    def _range(self, base: Any, size: Any, address: Any) -> int:
        assert address.value == self.memory.ctypes.data
        base._obj.value, size._obj.value = self.memory.ctypes.data, self.memory.nbytes
        return int(self.unknown)

    def _copy(self, target: Any, source: Any, nbytes: Any, direction: int, stream: Any) -> int:
        assert stream.value == STREAM
        on_gpu = (target if direction == 1 else source).value - self.memory.ctypes.data
        assert 0 <= on_gpu <= on_gpu + nbytes.value <= self.memory.nbytes
        self.queued.append((target.value, source.value, nbytes.value))
        return 0

    def _wait(self, stream: Any) -> int:
        assert stream.value == STREAM
        while self.queued:
            ctypes.memmove(*self.queued.pop(0))
        return 700 if self.fails else 0


@pytest.fixture
def cuda() -> Cuda:
    return Cuda()


@pytest.fixture
def lending(cuda: Cuda) -> Regions:
    """With region `r`: the first 200 bytes of DATA."""
    made = Regions(most=4)
    CudaRegions(cuda.ipc).register(made, "r", HANDLE, 0, 200)
    return made


def test_a_window_reads_and_writes_its_bytes_and_no_others(cuda: Cuda, lending: Regions) -> None:
    window = lending.window("x", Range("r", 16, 8))
    assert window.read() == DATA[16:24]
    assert window.part(2, 5).read() == DATA[18:21]
    window.part(2, 5).write(memoryview(b"abc"))
    assert cuda.memory.tobytes() == DATA[:18] + b"abc" + DATA[21:]
    floats = np.zeros((1, 2), np.float32)
    window.read_into(floats.data)
    assert floats.tobytes() == cuda.memory[16:24].tobytes()
    lending.window("x", Range("r", 200, 0)).write(memoryview(b""))


def test_a_request_names_it_as_any_other_region(lending: Regions) -> None:
    request = RequestDecoder(lending).decode(message(parameters(region="r", offset=40)))
    (content,) = request.contents
    assert content.read() == DATA[40:48]  # type: ignore[union-attr]


def test_it_is_given_back_when_its_last_user_is_done(cuda: Cuda, lending: Regions) -> None:
    window = lending.window("x", Range("r", 0, 4))
    lending.unregister("r", SystemRegion)
    assert [(each.name, each.device_id, each.byte_size) for each in lending.status(CudaRegion)] == [("r", 0, 200)]
    lending.unregister("r", CudaRegion)
    gc.collect()
    assert cuda.closed == []
    assert window.read() == DATA[:4]
    del window
    gc.collect()
    assert cuda.closed == [cuda.memory.ctypes.data]


@pytest.mark.parametrize(
    ("handle", "device", "size", "text"),
    [
        (HANDLE[:63], 0, 1, "has a handle of 63 bytes: expected the 64 of a CUDA IPC handle"),
        (b"", 0, 1, "has a handle of 0 bytes"),
        (HANDLE, 1, 1, "is on GPU 1: expected 0"),
        (HANDLE, -1, 1, "is on GPU -1"),
        (HANDLE, 0, 0, "is expected to have 1 byte or more, got 0"),
        (HANDLE, 0, 257, "is expected within the 256 bytes that were allocated, got 257"),
        (HANDLE, 0, 2**64 - 1, "is expected within the 256 bytes"),
        (bytes(64), 0, 1, "'n': the handle cannot be opened: error 400"),
    ],
)
def test_what_lends_nothing_is_refused(cuda: Cuda, handle: bytes, device: int, size: int, text: str) -> None:
    regions = Regions(most=1)
    with pytest.raises(InvalidRequest, match="CUDA shared memory region 'n'") as caught:
        CudaRegions(cuda.ipc).register(regions, "n", handle, device, size)
    assert text in str(caught.value)
    assert not regions.status(CudaRegion)
    del caught
    gc.collect()
    # What was opened for nothing is given back.
    assert len(cuda.closed) == (size > 256)


def test_failures_of_cuda_are_errors_of_the_call(cuda: Cuda, lending: Regions) -> None:
    cuda.fails = True
    window = lending.window("x", Range("r", 0, 4))
    for call in (window.read, lambda: window.write(memoryview(b"abcd"))):
        with pytest.raises(RuntimeFailure, match="a copy to or from the GPU failed: error 700"):
            call()
    cuda.unknown = True
    with pytest.raises(RuntimeFailure, match="the size of the memory is not to be had: CUDA driver error 1"):
        CudaRegions(cuda.ipc).register(lending, "s", HANDLE, 0, 1)


def test_a_library_that_is_missing_is_said_to_whoever_registers() -> None:
    def missing() -> CudaIpc:
        raise LoadError("no libcudart")

    with pytest.raises(RuntimeFailure, match="CUDA shared memory cannot be had: no libcudart"):
        CudaRegions(missing).register(Regions(most=1), "r", HANDLE, 0, 1)


def test_names_are_common_to_both_kinds_and_forgetting_is_not(lending: Regions, key: str) -> None:
    with pytest.raises(RegionExists):
        register(lending, "r", key, 0, 8)
    register(lending, "s", key, 0, 8)
    system = SystemSharedMemory(lending)
    system.unregister(pb.SystemSharedMemoryUnregisterRequest(name="r"))
    system.unregister(pb.SystemSharedMemoryUnregisterRequest())
    assert [each.name for each in lending.status(CudaRegion)] == ["r"]
    assert not lending.status(SystemRegion)
    with pytest.raises(RegionNotFound):
        lending.status(SystemRegion, "r")


def test_the_rpcs(cuda: Cuda) -> None:
    regions = Regions(most=4)
    extension = CudaSharedMemory(regions, CudaRegions(cuda.ipc))
    assert extension.names == ("cuda_shared_memory",)
    for name in ("a", "b"):
        request = pb.CudaSharedMemoryRegisterRequest(name=name, raw_handle=HANDLE, device_id=0, byte_size=64)
        asyncio.run(extension.register(request))
    status = extension.status(pb.CudaSharedMemoryStatusRequest())
    assert {name: (each.device_id, each.byte_size) for name, each in status.regions.items()} == {
        "a": (0, 64),
        "b": (0, 64),
    }
    extension.unregister(pb.CudaSharedMemoryUnregisterRequest(name="a"))
    assert list(extension.status(pb.CudaSharedMemoryStatusRequest()).regions) == ["b"]
    extension.unregister(pb.CudaSharedMemoryUnregisterRequest())
    assert not extension.status(pb.CudaSharedMemoryStatusRequest()).regions


def test_without_a_gpu_there_are_none(cuda: Cuda) -> None:
    extension = CudaSharedMemory(Regions(most=1), None)
    assert extension.names == ()
    with pytest.raises(NotBuilt, match="no model of this server runs on a GPU: use system shared memory"):
        asyncio.run(extension.register(pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=HANDLE, byte_size=1)))
    assert not extension.status(pb.CudaSharedMemoryStatusRequest()).regions
    # Switched off, it is off for both kinds.
    off = CudaSharedMemory(Regions(refusal="it is off"), CudaRegions(cuda.ipc))
    assert off.names == ()
    with pytest.raises(NotBuilt, match="it is off"):
        asyncio.run(off.register(pb.CudaSharedMemoryRegisterRequest(name="r", raw_handle=HANDLE, byte_size=1)))
