"""The shared memory extensions: of the system, and of a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.background import run_in_background
from inferd_server.errors import NotBuilt
from inferd_server.frontend.services import Handler
from inferd_server.runtime.cuda_regions import CudaRegion, CudaRegions
from inferd_server.shared_memory.regions import Regions
from inferd_server.shared_memory.system import SystemRegion, register


class SystemSharedMemory:
    """RPCs that register regions. Where that is switched off there are none to tell of or to forget."""

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self.names: Sequence[str] = ("system_shared_memory",) if regions.enabled else ()

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {
            "SystemSharedMemoryRegister": self.register,
            "SystemSharedMemoryUnregister": self.unregister,
            "SystemSharedMemoryStatus": self.status,
        }

    def register(self, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        """Registers a region."""
        register(self._regions, request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def unregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forgets a region, all of them where none is named."""
        if request.name:
            self._regions.unregister(request.name, SystemRegion)
        else:
            self._regions.unregister_all(SystemRegion)
        return pb.SystemSharedMemoryUnregisterResponse()

    def status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        """What is registered."""
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._regions.status(SystemRegion, request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response


class CudaSharedMemory:
    """RPCs that register regions of a GPU's memory. Without one there are none to tell of or to forget.

    Clients forget all regions before they begin, those of system shared memory too: that is no error.
    """

    def __init__(self, regions: Regions, cuda: CudaRegions | None) -> None:
        """`cuda` is None where models do not run on a GPU."""
        self._regions = regions
        self._cuda = cuda
        self.names: Sequence[str] = ("cuda_shared_memory",) if cuda and regions.enabled else ()

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {
            "CudaSharedMemoryRegister": self.register,
            "CudaSharedMemoryUnregister": self.unregister,
            "CudaSharedMemoryStatus": self.status,
        }

    async def register(self, request: pb.CudaSharedMemoryRegisterRequest) -> pb.CudaSharedMemoryRegisterResponse:
        """Registers a region."""
        cuda = self._cuda
        if cuda is None:
            raise NotBuilt(
                f"CUDA shared memory region '{request.name}' cannot be registered, since no model of this server runs "
                "on a GPU: use system shared memory"
            )
        # In another thread: the driver may take its time, and the first region has the libraries loaded.
        await run_in_background(
            lambda: cuda.register(
                self._regions, request.name, request.raw_handle, request.device_id, request.byte_size
            ),
            "registering CUDA shared memory",
        )
        return pb.CudaSharedMemoryRegisterResponse()

    def unregister(self, request: pb.CudaSharedMemoryUnregisterRequest) -> pb.CudaSharedMemoryUnregisterResponse:
        """Forgets a region, all of them where none is named."""
        if request.name:
            self._regions.unregister(request.name, CudaRegion)
        else:
            self._regions.unregister_all(CudaRegion)
        return pb.CudaSharedMemoryUnregisterResponse()

    def status(self, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
        """What is registered."""
        response = pb.CudaSharedMemoryStatusResponse()
        for region in self._regions.status(CudaRegion, request.name):
            status = response.regions[region.name]
            status.name, status.device_id, status.byte_size = region.name, region.device_id, region.byte_size
        return response
