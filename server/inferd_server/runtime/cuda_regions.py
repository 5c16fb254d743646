"""Regions of a GPU's memory that another process on this host allocated and lends by a CUDA IPC handle.

Tensors are copied between them and the buffers of the batch, which lie on the host: the GPU's memory spares a client
its own copies, the message and the socket. Copies of all regions queue on one stream, and each waits for its end.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np

from inferd_server.errors import InvalidRequest, LoadError, RuntimeFailure
from inferd_server.runtime.cuda_memory import CudaMemory
from inferd_server.shared_memory.regions import Region, Regions

_HANDLE_BYTES = 64
"""CUDA_IPC_HANDLE_SIZE."""
_LAZY_PEER_ACCESS = 1
"""cudaIpcMemLazyEnablePeerAccess, the only flag there is."""
_DRIVER = "libcuda.so.1"
_DEVICE = 0
"""Models run on the first GPU."""


class _Handle(ctypes.Structure):
    """cudaIpcMemHandle_t, which is passed by value."""

    _fields_ = [("reserved", ctypes.c_ubyte * _HANDLE_BYTES)]


class Lent(Protocol):
    """What regions need of the GPU."""

    def open(self, handle: bytes) -> int:
        """The address of the memory in this process. Raises InvalidRequest for a handle that is none."""

    def close(self, address: int) -> None:
        """Gives the memory back."""

    def room(self, address: int) -> int:
        """Bytes from the address to the end of what was allocated. Raises RuntimeFailure where nobody knows."""

    def read(self, source: int, target: memoryview) -> None:
        """Copies from the GPU, and returns when all is there. Raises RuntimeFailure."""

    def write(self, target: int, data: memoryview) -> None:
        """Copies to the GPU, and returns when all is there. Raises RuntimeFailure."""


class CudaIpc(CudaMemory):
    """Memory that is lent on the first GPU. Raises LoadError where CUDA's libraries cannot be found."""

    def __init__(self, library: ctypes.CDLL | None = None, driver: ctypes.CDLL | None = None) -> None:
        super().__init__(library)
        try:
            self._driver = driver or ctypes.CDLL(_DRIVER)
        except OSError as error:
            raise LoadError(f"the NVIDIA driver is not found: {error}") from error
        self._stream = self.stream()

    def open(self, handle: bytes) -> int:
        """As `Lent.open`."""
        address = ctypes.c_void_p()
        by_value = _Handle.from_buffer_copy(handle)
        status = self._library.cudaIpcOpenMemHandle(ctypes.byref(address), by_value, _LAZY_PEER_ACCESS)
        if status:
            raise InvalidRequest(f"the handle cannot be opened: {self._reason(status)}")
        return address.value or 0

    def close(self, address: int) -> None:
        """As `Lent.close`."""
        self._library.cudaIpcCloseMemHandle(ctypes.c_void_p(address))

    def room(self, address: int) -> int:
        """As `Lent.room`."""
        # A CUdeviceptr is an integer, the width of a pointer.
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        status = self._driver.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
        if status:
            raise RuntimeFailure(f"the size of the memory is not to be had: CUDA driver error {status}")
        return base.value + size.value - address

    def read(self, source: int, target: memoryview) -> None:
        """As `Lent.read`."""
        self.to_host(np.frombuffer(target, np.uint8), source, target.nbytes, self._stream)
        self.wait(self._stream)

    def write(self, target: int, data: memoryview) -> None:
        """As `Lent.write`."""
        self.to_device(target, np.frombuffer(data, np.uint8), data.nbytes, self._stream)
        self.wait(self._stream)


class CudaRegion(Region):
    """`byte_size` bytes from the beginning of what a client lends, on the GPU `device_id`."""

    __slots__ = ("_address", "_memory", "device_id")

    def __init__(self, name: str, byte_size: int, memory: Lent, address: int) -> None:
        super().__init__(name, byte_size)
        self.device_id = _DEVICE
        self._memory = memory
        self._address = address
        # At the end of the process the driver gives all of it back, and may be gone before.
        weakref.finalize(self, memory.close, address).atexit = False

    def read_into(self, start: int, target: memoryview) -> None:
        """As `Region.read_into`."""
        self._memory.read(self._address + start, target)

    def write(self, start: int, data: memoryview) -> None:
        """As `Region.write`."""
        self._memory.write(self._address + start, data)


class CudaRegions:
    """Registers regions of the GPU. The libraries are asked for with the first one."""

    def __init__(self, make: Callable[[], Lent] = CudaIpc) -> None:
        self._make = make
        self._memory: Lent | None = None
        self._lock = threading.Lock()

    def register(self, regions: Regions, name: str, handle: bytes, device_id: int, byte_size: int) -> None:
        """Registers what a handle lends, `byte_size` bytes of it.

        Raises as `Regions.add` does, and InvalidRequest where the handle lends nothing, or too little, or on another
        GPU; RuntimeFailure where CUDA cannot say.
        """
        regions.add(name, lambda: self._region(name, handle, device_id, byte_size))

    def _region(self, name: str, handle: bytes, device_id: int, byte_size: int) -> CudaRegion:
        if len(handle) != _HANDLE_BYTES:
            raise InvalidRequest(
                f"CUDA shared memory region '{name}' has a handle of {len(handle)} bytes: expected the {_HANDLE_BYTES} "
                "of a CUDA IPC handle"
            )
        if device_id != _DEVICE:
            raise InvalidRequest(
                f"CUDA shared memory region '{name}' is on GPU {device_id}: expected {_DEVICE}, where models run"
            )
        if byte_size < 1:
            raise InvalidRequest(f"CUDA shared memory region '{name}' is expected to have 1 byte or more, got 0")
        memory = self._opened()
        try:
            address = memory.open(handle)
        except InvalidRequest as error:
            raise InvalidRequest(f"CUDA shared memory region '{name}': {error}") from error
        # From here on the region gives the memory back, whatever happens.
        region = CudaRegion(name, byte_size, memory, address)
        room = memory.room(address)
        if byte_size > room:
            raise InvalidRequest(
                f"CUDA shared memory region '{name}' is expected within the {room} bytes that were allocated, "
                f"got {byte_size}"
            )
        return region

    def _opened(self) -> Lent:
        with self._lock:
            if self._memory is None:
                try:
                    self._memory = self._make()
                except LoadError as error:
                    raise RuntimeFailure(f"CUDA shared memory cannot be had: {error}") from error
            return self._memory
