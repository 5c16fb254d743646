"""The unary RPCs beside ModelInfer: thin, each a question to the core and a message for its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.core import description
from inferd_server.core.description import TensorDescription
from inferd_server.repository.manager import RepositoryManager

Handler = Callable[[Any], Any]
"""Takes the request message and returns the response message, or an awaitable of it, or raises ServerError."""


class Extension(Protocol):
    """RPCs of one of the protocol's extensions."""

    @property
    def names(self) -> Sequence[str]:
        """As ServerMetadata tells them."""

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""


class Services:
    """The handlers of the core protocol and of the extensions, by RPC name."""

    def __init__(self, repository: RepositoryManager, extensions: Sequence[Extension] = ()) -> None:
        self._repository = repository
        self._extensions = extensions
        self._draining = False
        self._agreed = True

    def handlers(self) -> Mapping[str, Handler]:
        """The RPCs that are built."""
        handlers: dict[str, Handler] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
        }
        for extension in self._extensions:
            handlers.update(extension.handlers())
        return handlers

    def drain(self) -> None:
        """From here on the server says that it is not ready."""
        self._draining = True

    def hold_back(self) -> None:
        """The server is one of several workers: it is not ready before all of them are, and `agree` is called."""
        self._agreed = False

    def agree(self) -> None:
        """Every worker is ready."""
        self._agreed = True

    def is_ready(self) -> bool:
        """Whether the server should be sent work."""
        return self._agreed and not self._draining and self._repository.ready()

    def server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Answering is the proof."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Whether the required models can be called, and the server is not shutting down."""
        return pb.ServerReadyResponse(ready=self.is_ready())

    def server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Name, version and the extensions that work."""
        return pb.ServerMetadataResponse(
            name=description.SERVER_NAME,
            version=description.server_version(),
            extensions=sorted({*description.EXTENSIONS, *(name for part in self._extensions for name in part.names)}),
        )

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Whether a model's version can be called."""
        ready = description.model_ready(self._repository, request.name, request.version)
        return pb.ModelReadyResponse(ready=ready)

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """What a model's version takes and gives."""
        model = description.describe_model(self._repository, request.name, request.version)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=model.versions,
            platform=model.platform,
            inputs=map(_tensor, model.inputs),
            outputs=map(_tensor, model.outputs),
        )


def _tensor(tensor: TensorDescription) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
