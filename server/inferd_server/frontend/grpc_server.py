"""The gRPC server on grpcio's asyncio: every RPC of the protocol, health, reflection, TLS."""

from __future__ import annotations

import inspect
from typing import Any

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from inferd_protocol import grpc_service_pb2, model_config_pb2
from inferd_protocol.methods import METHODS, SERVICE, Method

from inferd_server.config import ServerConfig
from inferd_server.errors import ConfigurationError, NotBuilt
from inferd_server.frontend.aio_calls import AioIntake, Context, abort, deadline_ns
from inferd_server.frontend.health import Health
from inferd_server.frontend.infer import InferEndpoint
from inferd_server.frontend.services import Handler, Services
from inferd_server.frontend.status import Status, status_of
from inferd_server.frontend.stream import StreamInfer


class GrpcServer:
    """Listens from `start` on, and says NOT_SERVING until `set_serving`.

    On `listen_on`, without TLS, where that is given, else where the configuration says.
    Raises ConfigurationError where it cannot listen there.
    """

    def __init__(
        self, config: ServerConfig, endpoint: InferEndpoint, services: Services, listen_on: str | None = None
    ) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", config.grpc_max_message_size),
                ("grpc.max_send_message_length", config.grpc_max_message_size),
                ("grpc.max_concurrent_streams", config.grpc_max_concurrent_streams),
                # Off, or a second server on the same port would start, and get half of the calls.
                ("grpc.so_reuseport", int(config.workers > 1)),
                # Clients that ping to find dead peers are no attackers: gRPC's own bound is five minutes.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            )
        )
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=_reflection_pool())
        handlers = {name: _unary(METHODS[name], handler) for name, handler in services.handlers().items()}
        intake = AioIntake(endpoint)
        self._streams = StreamInfer(intake, config.grpc_max_message_size)
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(_Infer(intake).call)
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._streams.call)
        for name, method in METHODS.items():
            if name not in handlers:
                handlers[name] = _not_built(method)
        self._server.add_registered_method_handlers(SERVICE, handlers)
        self.address = self._bind(config, listen_on)

    async def start(self) -> None:
        """Accepts calls: the server is live, and not yet ready."""
        await self._server.start()

    def set_serving(self, serving: bool) -> None:
        """Tells health checks, those that watch included, whether the server should be sent calls."""
        self._health.set_serving(serving)

    def end_streams(self) -> bool:
        """Reads no more requests from streams: each ends once it has answered those it has. Whether there are any."""
        return self._streams.drain()

    async def stop(self, timeout: float) -> None:
        """Refuses new calls, gives those that run `timeout` seconds to finish, and closes every connection."""
        self.end_streams()
        self._health.end()
        await self._server.stop(timeout)

    def _bind(self, config: ServerConfig, listen_on: str | None) -> str:
        address = listen_on or target(config)
        try:
            if config.grpc_use_ssl and not listen_on:
                port = self._server.add_secure_port(address, _credentials(config))
            else:
                port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise taken(address) from error
        return listen_on or f"{address.rpartition(':')[0]}:{port}"


def target(config: ServerConfig) -> str:
    """The address to listen on, as gRPC writes it: host:port, IPv6 in brackets."""
    host = f"[{config.grpc_address}]" if ":" in config.grpc_address else config.grpc_address
    return f"{host}:{config.grpc_port}"


def taken(address: str) -> ConfigurationError:
    """Says that nobody can listen on an address."""
    return ConfigurationError(f"cannot listen on {address}: is the port taken, the address one of this machine's?")


class _Infer:
    """ModelInfer as grpcio calls it: bytes in, bytes out."""

    def __init__(self, intake: AioIntake) -> None:
        self._intake = intake

    async def call(self, message: bytes, context: Context) -> bytes:
        call = self._intake.call(deadline_ns(context), context)
        self._intake.accept(message, call)
        outcome = await call.outcome()
        if isinstance(outcome, Status):
            await abort(context, outcome)
        assert isinstance(outcome, bytes)
        return outcome


def _unary(method: Method, handler: Handler) -> grpc.RpcMethodHandler[Any, Any]:
    async def call(message: bytes, context: Context) -> Message:
        try:
            answer = handler(method.request.FromString(message))
            response: Message = await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            await abort(context, status_of(error))
            raise
        return response

    return grpc.unary_unary_rpc_method_handler(call, response_serializer=method.response.SerializeToString)


def _not_built(method: Method) -> grpc.RpcMethodHandler[Any, Any]:
    error = NotBuilt(f"RPC {method.name} is part of the protocol, and this server does not have it")

    async def unary(_: bytes, context: Context) -> bytes:
        await abort(context, status_of(error))
        raise error

    return grpc.unary_unary_rpc_method_handler(unary)


def _credentials(config: ServerConfig) -> grpc.ServerCredentials:
    assert config.grpc_server_key is not None
    assert config.grpc_server_cert is not None
    pair = (config.grpc_server_key.read_bytes(), config.grpc_server_cert.read_bytes())
    roots = config.grpc_root_cert.read_bytes() if config.grpc_root_cert else None
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=config.grpc_use_ssl_mutual)


def _reflection_pool() -> DescriptorPool:
    """A pool for reflection alone: this project's messages live in a pool of their own, grpcio's in the default one."""
    pool = DescriptorPool()
    for module in (model_config_pb2, grpc_service_pb2, health_pb2, reflection_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        pool.Add(file)
    return pool
