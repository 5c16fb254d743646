"""The host as a device, so that what runs on memory taken beforehand can be tested where no GPU is."""

from __future__ import annotations

import ctypes

import numpy as np


class HostMemory:
    """`Memory` whose device is the CPU. Counts what is taken and not given back."""

    device = "cpu"

    def __init__(self) -> None:
        self.buffers = 0
        self.streams = 0

    def host(self, nbytes: int) -> np.ndarray:
        self.buffers += 1
        # What memory holds is nobody's promise.
        return np.full(max(1, nbytes), 255, np.uint8)

    def free_host(self, buffer: np.ndarray) -> None:
        self.buffers -= 1

    def stream(self) -> int:
        self.streams += 1
        return self.streams

    def free_stream(self, stream: int) -> None:
        self.streams -= 1

    def to_device(self, target: int, source: np.ndarray, nbytes: int, stream: int) -> None:
        ctypes.memmove(target, source.ctypes.data, nbytes)

    def to_host(self, target: np.ndarray, source: int, nbytes: int, stream: int) -> None:
        ctypes.memmove(target.ctypes.data, source, nbytes)

    def wait(self, stream: int) -> None:
        pass
