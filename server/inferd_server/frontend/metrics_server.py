"""Metrics over HTTP, in threads of their own."""

from __future__ import annotations

import socket
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from inferd_server.errors import ConfigurationError
from inferd_server.frontend.figures import Source
from inferd_server.frontend.metrics import registry

_POLL_SECONDS = 0.2
"""How long `close` may have to wait."""
_READ_SECONDS = 10.0


class MetricsServer:
    """Serves http://`host`:`port`/metrics from `start` on; port 0 takes a free one, `address` says which.

    With several `workers` the port is shared with the others. Raises ConfigurationError where it cannot listen there.
    """

    def __init__(self, host: str, port: int, source: Source, workers: int) -> None:
        application = make_wsgi_app(registry(source, workers))
        kind = type("Listening", (_Server,), {"address_family": _family(host, port), "allow_reuse_port": workers > 1})
        try:
            self._server: WSGIServer = make_server(host, port, application, kind, _Handler)
        except OSError as error:
            raise taken(host, port, error) from error
        self.address = f"{_bracketed(host)}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True
        )

    def start(self) -> None:
        """Accepts calls."""
        self._thread.start()

    def close(self) -> None:
        """Ends the server; a scrape that is being answered is cut off at the end of the process."""
        self._server.shutdown()
        self.free()

    def free(self) -> None:
        """Gives the port back, of a server that is not started."""
        self._server.server_close()


def taken(host: str, port: int, error: OSError) -> ConfigurationError:
    """Says that nobody can serve metrics on an address."""
    return ConfigurationError(
        f"cannot serve metrics on {_bracketed(host)}:{port}: is the port taken, the address one of this machine's? "
        f"--metrics-port names another, 0 takes a free one, off serves no metrics ({error})"
    )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # Not HTTPServer's own, which asks the resolver for the name of the host.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "inferd", self.socket.getsockname()[1]
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = _READ_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as it is called
        """Says nothing: scrapes come every few seconds."""


def _family(host: str, port: int) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except OSError as error:
        raise taken(host, port, error) from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
