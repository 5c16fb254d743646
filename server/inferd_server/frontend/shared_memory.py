"""The shared memory extensions: system shared memory, and CUDA's, which this server does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.errors import NotBuilt, RegionNotFound
from inferd_server.frontend.services import Handler
from inferd_server.shared_memory import Regions


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
        self._regions.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def unregister(self, request: pb.SystemSharedMemoryUnregisterRequest) -> pb.SystemSharedMemoryUnregisterResponse:
        """Forgets a region, all of them where none is named."""
        if request.name:
            self._regions.unregister(request.name)
        else:
            self._regions.unregister_all()
        return pb.SystemSharedMemoryUnregisterResponse()

    def status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        """What is registered."""
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._regions.status(request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response


class CudaSharedMemory:
    """No region of a GPU's memory can be registered: there is none to tell of or to forget.

    Clients forget all regions before they begin, those of system shared memory too: that is no error.
    """

    names: Sequence[str] = ()

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {
            "CudaSharedMemoryRegister": self.register,
            "CudaSharedMemoryUnregister": self.unregister,
            "CudaSharedMemoryStatus": self.status,
        }

    def register(self, request: pb.CudaSharedMemoryRegisterRequest) -> pb.CudaSharedMemoryRegisterResponse:
        """Refuses."""
        raise NotBuilt(
            f"CUDA shared memory region '{request.name}' cannot be registered, since this server does not have CUDA "
            "shared memory: use system shared memory"
        )

    def unregister(self, _: pb.CudaSharedMemoryUnregisterRequest) -> pb.CudaSharedMemoryUnregisterResponse:
        """There is nothing to forget."""
        return pb.CudaSharedMemoryUnregisterResponse()

    def status(self, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
        """Nothing is registered."""
        if request.name:
            raise RegionNotFound(f"CUDA shared memory region '{request.name}' is not registered")
        return pb.CudaSharedMemoryStatusResponse()
