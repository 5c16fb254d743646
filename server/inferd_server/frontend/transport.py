"""Chooses what speaks gRPC."""

from __future__ import annotations

import importlib.util
import logging
from typing import Protocol

from inferd_server.config import ServerConfig, Transport
from inferd_server.errors import ConfigurationError
from inferd_server.frontend.grpc_server import GrpcServer
from inferd_server.frontend.infer import InferEndpoint
from inferd_server.frontend.services import Services

_LOG = logging.getLogger(__name__)


class Server(Protocol):
    """A server that listens from `start` on, and says NOT_SERVING until `set_serving`."""

    address: str
    """host:port, with the port that was taken where any would do."""

    async def start(self) -> None:
        """Accepts calls: the server is live, and not yet ready."""

    def set_serving(self, serving: bool) -> None:
        """Tells health checks, those that watch included, whether the server should be sent calls."""

    async def stop(self, timeout: float) -> None:
        """Refuses new calls, gives those that run `timeout` seconds to finish, and closes every connection."""


def listen(config: ServerConfig, endpoint: InferEndpoint, services: Services) -> Server:
    """The server with the transport that is asked for.

    Raises ConfigurationError where it is not installed, or cannot listen.
    """
    if not _native(config):
        return GrpcServer(config, endpoint, services)
    # Imported when used: it is an extra.
    from inferd_server.frontend.native_front import NativeServer

    return NativeServer(config, endpoint, lambda address: GrpcServer(config, endpoint, services, address))


def _native(config: ServerConfig) -> bool:
    if config.transport is Transport.GRPCIO or config.grpc_use_ssl:
        return False
    installed = importlib.util.find_spec("pygrpc_native") is not None
    if config.transport is Transport.NATIVE and not installed:
        raise ConfigurationError(
            "--transport native needs an extra that is not installed: pip install 'inferd[native]'"
        )
    if not installed:
        _LOG.info("grpcio answers ModelInfer; pip install 'inferd[native]' for a faster transport")
    return installed
