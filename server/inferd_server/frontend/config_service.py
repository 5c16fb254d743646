"""RPC ModelConfig: how a version is served, in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.core import description
from inferd_server.frontend.services import Handler
from inferd_server.repository.manager import RepositoryManager


class ConfigService:
    """The extension `model_configuration`."""

    names: Sequence[str] = ("model_configuration",)

    def __init__(self, repository: RepositoryManager) -> None:
        self._repository = repository

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {"ModelConfig": self.model_config}

    def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """The complete configuration of a model's version."""
        return pb.ModelConfigResponse(config=description.configuration(self._repository, request.name, request.version))
