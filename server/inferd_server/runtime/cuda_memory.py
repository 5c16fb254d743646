"""Pinned host memory and copies to and from the GPU, by the CUDA runtime library that ONNX Runtime has loaded.

ONNX Runtime's Python interface has neither: its own copies are from pageable memory and wait for the device. Here each
user of the memory has a stream of its own, so that one batch is copied while another is computed.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inferd_server.errors import LoadError, RuntimeFailure

_TO_DEVICE = 1
_TO_HOST = 2
_NON_BLOCKING = 1
"""cudaStreamNonBlocking: does not wait for the default stream."""
_PORTABLE = 1
"""cudaHostAllocPortable: pinned for every context."""

_MAJOR_VERSIONS = (13, 12)
"""Of the CUDA runtimes that releases of ONNX Runtime are built for."""


class Memory(Protocol):
    """Where the buffers of a device come from, and how they are filled and read."""

    device: str
    """The runtime's name of it."""

    def host(self, nbytes: int) -> NDArray[np.uint8]:
        """A buffer of the host that the device copies from and to at full speed. Raises LoadError where it is full."""

    def free_host(self, buffer: NDArray[np.uint8]) -> None:
        """Gives such a buffer back. It must not be used any more, nor any view of it."""

    def stream(self) -> int:
        """A new queue of copies."""

    def free_stream(self, stream: int) -> None:
        """Gives a queue back."""

    def to_device(self, target: int, source: NDArray[np.uint8], nbytes: int, stream: int) -> None:
        """Queues a copy to the device's address `target`."""

    def to_host(self, target: NDArray[np.uint8], source: int, nbytes: int, stream: int) -> None:
        """Queues a copy from the device's address `source`."""

    def wait(self, stream: int) -> None:
        """Until all copies of the queue are done. Raises RuntimeFailure where one failed."""


class CudaMemory:
    """The memory of the first GPU. Raises LoadError where the CUDA runtime library cannot be found."""

    device = "cuda"

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        self._library = library or _library()
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def host(self, nbytes: int) -> NDArray[np.uint8]:
        """As `Memory.host`."""
        address = ctypes.c_void_p()
        status = self._library.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(max(1, nbytes)), _PORTABLE)
        if status:
            raise LoadError(f"no {nbytes} bytes of pinned memory are to be had: {self._reason(status)}")
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(1, nbytes)).from_address(address.value or 0))

    def free_host(self, buffer: NDArray[np.uint8]) -> None:
        """As `Memory.free_host`."""
        self._library.cudaFreeHost(ctypes.c_void_p(buffer.ctypes.data))

    def stream(self) -> int:
        """As `Memory.stream`."""
        stream = ctypes.c_void_p()
        status = self._library.cudaStreamCreateWithFlags(ctypes.byref(stream), _NON_BLOCKING)
        if status:
            raise LoadError(f"no stream of copies is to be had: {self._reason(status)}")
        return stream.value or 0

    def free_stream(self, stream: int) -> None:
        """As `Memory.free_stream`."""
        self._library.cudaStreamDestroy(ctypes.c_void_p(stream))

    def to_device(self, target: int, source: NDArray[np.uint8], nbytes: int, stream: int) -> None:
        """As `Memory.to_device`."""
        self._copy(target, source.ctypes.data, nbytes, _TO_DEVICE, stream)

    def to_host(self, target: NDArray[np.uint8], source: int, nbytes: int, stream: int) -> None:
        """As `Memory.to_host`."""
        self._copy(target.ctypes.data, source, nbytes, _TO_HOST, stream)

    def wait(self, stream: int) -> None:
        """As `Memory.wait`."""
        self._check(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)))

    def _copy(self, target: int, source: int, nbytes: int, direction: int, stream: int) -> None:
        self._check(
            self._library.cudaMemcpyAsync(
                ctypes.c_void_p(target),
                ctypes.c_void_p(source),
                ctypes.c_size_t(nbytes),
                direction,
                ctypes.c_void_p(stream),
            )
        )

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeFailure(f"a copy to or from the GPU failed: {self._reason(status)}")

    def _reason(self, status: int) -> str:
        text: bytes | None = self._library.cudaGetErrorString(status)
        return (text or b"").decode() or f"CUDA error {status}"


def _library() -> ctypes.CDLL:
    for major in _MAJOR_VERSIONS:
        try:
            # Loaded by the runtime already, and then found under its own name wherever it lies.
            return ctypes.CDLL(f"libcudart.so.{major}")
        except OSError:
            continue
    names = " or ".join(f"libcudart.so.{major}" for major in _MAJOR_VERSIONS)
    raise LoadError(f"the CUDA runtime library is not found: expected {names}")
