"""Tensors in a GPU's memory that a client lends to a real server. Skipped where there is no GPU."""

from __future__ import annotations

import base64
import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from inferd_server.config import Device
from inferd_server.errors import ConfigurationError
from inferd_server.runtime.cuda_memory import CudaMemory
from inferd_server.runtime.devices import providers
from support import models
from support.server import serve
from tritonclient.utils import InferenceServerException

NBYTES = 4096
pytestmark = pytest.mark.gpu


class Allocation(CudaMemory):
    """`NBYTES` bytes of the first GPU, allocated by this process, as a client does it."""

    def __init__(self) -> None:
        super().__init__()
        address = ctypes.c_void_p()
        assert self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(NBYTES)) == 0
        self.address = address.value or 0
        self.queue = self.stream()

    def handle(self) -> bytes:
        handle = (ctypes.c_ubyte * 64)()
        assert self._library.cudaIpcGetMemHandle(handle, ctypes.c_void_p(self.address)) == 0
        return base64.b64encode(bytes(handle))

    def put(self, offset: int, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).view(np.uint8).ravel()
        self.to_device(self.address + offset, data, data.nbytes, self.queue)
        self.wait(self.queue)

    def get(self, offset: int, nbytes: int) -> bytes:
        data = np.empty(nbytes, np.uint8)
        self.to_host(data, self.address + offset, nbytes, self.queue)
        self.wait(self.queue)
        return data.tobytes()

    def free(self) -> None:
        self._library.cudaFree(ctypes.c_void_p(self.address))


@pytest.fixture
def allocation() -> Iterator[Allocation]:
    try:
        providers(Device.CUDA)
    except ConfigurationError as error:
        pytest.skip(str(error))
    made = Allocation()
    yield made
    made.free()


def test_inputs_and_outputs_in_a_gpus_memory(tmp_path: Path, allocation: Allocation) -> None:
    models.write(tmp_path, "identity", models.identity(models.ELEMENT_TYPES["FP32"]))
    rows = np.random.default_rng(0).random((4, 3), np.float32)
    allocation.put(256, rows)
    with (
        serve(tmp_path, "--device", "cuda") as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert "cuda_shared_memory" in client.get_server_metadata().extensions
        client.register_cuda_shared_memory("gpu", allocation.handle(), 0, NBYTES)
        assert client.get_cuda_shared_memory_status().regions["gpu"].byte_size == NBYTES
        x, y = triton.InferInput("x", list(rows.shape), "FP32"), triton.InferRequestedOutput("y")
        x.set_shared_memory("gpu", rows.nbytes, 256)
        y.set_shared_memory("gpu", rows.nbytes, 1024)
        answer = client.infer("identity", [x], outputs=[y])
        assert answer.as_numpy("y") is None
        assert allocation.get(1024, rows.nbytes) == rows.tobytes()
        for name, size, text in (("larger", NBYTES * 2**20, "is expected within"), ("gpu", 1, "registered already")):
            with pytest.raises(InferenceServerException, match=text):
                client.register_cuda_shared_memory(name, allocation.handle(), 0, size)
        client.unregister_cuda_shared_memory()
        with pytest.raises(InferenceServerException, match="which is not registered"):
            client.infer("identity", [x])
