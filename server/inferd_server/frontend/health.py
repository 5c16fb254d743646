"""grpc.health.v1, the health check that load balancers and orchestrators speak."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inferd_protocol.methods import SERVICE

from inferd_server.errors import Draining
from inferd_server.frontend.aio_calls import Context, abort
from inferd_server.frontend.status import status_of

_NAMES = ("", SERVICE)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health(health_pb2_grpc.HealthServicer):
    """Says NOT_SERVING until it is told otherwise. Used on the event loop alone.

    Not grpcio's own servicer: there a watcher that leaves takes the news from every other, one that does not read
    holds up whoever sets the status, and one that stays holds up the server's stop until its time is over.
    """

    def __init__(self) -> None:
        self._serving = self._ended = False
        self._changed = asyncio.Event()
        """Set at the next change, and then replaced by another."""

    def set_serving(self, serving: bool) -> None:
        """Tells those who ask, and those who watch."""
        if serving != self._serving:
            self._serving = serving
            self._tell()

    def end(self) -> None:
        """Ends the calls of those who watch: they would keep a server from stopping that has nothing else to do."""
        self._ended = True
        self._tell()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:  # noqa: N802
        """The status now. Ends with NOT_FOUND for a service that the server does not have."""
        if request.service not in _NAMES:
            text = f"service '{request.service}' is not known: expected '' for the server, or '{SERVICE}'"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
        return self._status(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:  # noqa: N802
        """The status now, and each other one from then on; SERVICE_UNKNOWN for a service the server does not have."""
        told: health_pb2.HealthCheckResponse | None = None
        while True:
            changed, ended = self._changed, self._ended
            if (status := self._status(request.service)) != told:
                await context.write(status)
                told = status
            if ended:
                await abort(context, status_of(Draining()))
            await changed.wait()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        serving = _SERVING if self._serving else _NOT_SERVING
        known = service in _NAMES
        return health_pb2.HealthCheckResponse(
            status=serving if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        )

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
