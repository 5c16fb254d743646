"""The RPCs of `inference.GRPCInferenceService`: one table, read from the service's own descriptor.

Server and client build their handlers and calls from it, so that neither needs generated gRPC stubs, whose code ties
them to a version of grpcio.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from inferd_protocol import grpc_service_pb2

_SERVICE = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

SERVICE: str = _SERVICE.full_name


class Access(StrEnum):
    """What a caller must be allowed to do to use an RPC."""

    HEALTH = "health"
    """Ask whether the server and its models are there."""
    INFERENCE = "inference"
    """Describe and call models."""
    MONITORING = "monitoring"
    """Read statistics and the repository's index."""
    CONTROL = "control"
    """Change what is served, and how."""


_ACCESS = {
    "ServerLive": Access.HEALTH,
    "ServerReady": Access.HEALTH,
    "ModelReady": Access.HEALTH,
    "ServerMetadata": Access.INFERENCE,
    "ModelMetadata": Access.INFERENCE,
    "ModelConfig": Access.INFERENCE,
    "ModelInfer": Access.INFERENCE,
    "ModelStreamInfer": Access.INFERENCE,
    "ModelStatistics": Access.MONITORING,
    "RepositoryIndex": Access.MONITORING,
    "SystemSharedMemoryStatus": Access.MONITORING,
    "CudaSharedMemoryStatus": Access.MONITORING,
}


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: `path` is its HTTP/2 path; a method not named in the table of access needs CONTROL."""

    name: str
    path: str
    request: type[Message]
    response: type[Message]
    streaming: bool
    access: Access


METHODS: dict[str, Method] = {
    method.name: Method(
        name=method.name,
        path=f"/{SERVICE}/{method.name}",
        request=GetMessageClass(method.input_type),
        response=GetMessageClass(method.output_type),
        streaming=method.client_streaming or method.server_streaming,
        access=_ACCESS.get(method.name, Access.CONTROL),
    )
    for method in _SERVICE.methods
}
