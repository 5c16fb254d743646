"""The connection to a server: target, security, limits, and carrying out a call. The only module that imports grpc."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
from inferd_protocol.methods import METHODS
from inferd_protocol.reasons import REASON_KEY

from inferd_client.errors import Cancelled, ClientClosed, InferdError, InvalidInput, from_status

DEFAULT_MAX_MESSAGE_BYTES = 64 * 2**20
"""The largest request and answer: 64 MiB, as the server's. gRPC's default of 4 MiB is less than a batch of photos."""

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")

_OPTIONS: tuple[tuple[str, object], ...] = (
    # Every address that the name resolves to gets its share; gRPC's default sends everything to the first one.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # This client retries by itself, knowing the reasons. gRPC's own layer costs a tenth of a small call's CPU time.
    ("grpc.enable_retries", 0),
    # A server that has restarted is found again in a moment, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A dead peer is noticed while calls wait for it. Not more often: servers answer too many pings with a goodbye.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Encryption, by PEM files: `Tls()` trusts the system's authorities.

    `root` are the authorities that the server's certificate is checked against; `certificate` and `key`, both or none,
    are what the client shows; `server_name` is the name to check instead of the target's.
    """

    root: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and a key its certificate")


class Transport(Protocol):
    """Carries out calls, blocking. `start` begins one that is waited for later."""

    def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """The answer's bytes. Raises an InferdError."""

    def start(self, method: str, request: bytes, timeout: float) -> Pending:
        """The call under way."""

    def close(self) -> None:
        """Cancels what is under way. Closing again does nothing."""


class Pending(Protocol):
    """A call under way."""

    def result(self) -> bytes:
        """Waits for the answer's bytes. Raises an InferdError."""

    def cancel(self) -> None:
        """Gives the call up; does nothing once it is answered."""


class AsyncTransport(Protocol):
    """Carries out calls, awaiting."""

    async def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """The answer's bytes. Raises an InferdError. Cancelling it cancels the call."""

    async def close(self) -> None:
        """Cancels what is under way. Closing again does nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where to and how: checked here, so that a mistake is raised where the client is made, not by its first call."""

    target: str
    tls: Tls | None
    token: str | None
    max_message_bytes: int

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise InvalidInput("a token is printable ASCII without blanks")
        if self.max_message_bytes <= 0:
            raise InvalidInput(f"max_message_bytes is a positive number, got {self.max_message_bytes}")

    def __repr__(self) -> str:
        return f"Connection({self.target!r}, tls={self.tls!r})"

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What every call carries."""
        return None if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def options(self) -> list[tuple[str, object]]:
        """gRPC's channel arguments."""
        options = [
            *_OPTIONS,
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
        ]
        if _is_loopback(self.target):
            options.append(("grpc.enable_http_proxy", 0))  # no proxy can reach this machine's own addresses
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def credentials(self) -> Any:
        """gRPC's channel credentials, None for plain text. Raises OSError for a file that cannot be read."""
        if self.tls is None:
            return None
        root, key, certificate = (
            None if path is None else Path(path).read_bytes()
            for path in (self.tls.root, self.tls.key, self.tls.certificate)
        )
        return grpc.ssl_channel_credentials(root, key, certificate)


def check_target(target: str) -> None:
    """Raises InvalidInput unless `target` is `host:port`, `[ipv6]:port`, or one of gRPC's schemes (`unix:/path`)."""
    if target.startswith(_SCHEMES):
        return
    if "://" in target:
        raise InvalidInput(f"the target '{target}' is a URL: give host:port, and encryption by tls")
    match = _HOST_PORT.fullmatch(target)
    if match is None:
        raise InvalidInput(f"the target '{target}' is not host:port, for example localhost:8001 or [::1]:8001")
    if not 0 < int(match["port"]) < 2**16:
        raise InvalidInput(f"the target '{target}' has no valid port: expected 1 to 65535")


def _is_loopback(target: str) -> bool:
    match = _HOST_PORT.fullmatch(target)
    if match is None:
        return False
    host = match["host"].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name


def _translate(error: Any) -> InferdError:
    """The error for a gRPC one: its status code, and the reason that an inferd server puts beside it."""
    reasons = [value for key, value in error.trailing_metadata() or () if key == REASON_KEY]
    return from_status(error.code().name, error.details() or "", reasons[0] if reasons else None)


def _closed(target: str) -> ClientClosed:
    return ClientClosed(f"the client of {target} is closed")


class _Pending:
    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self) -> bytes:
        try:
            answer: bytes = self._future.result()
        except grpc.RpcError as error:
            raise _translate(error) from error
        except grpc.FutureCancelledError as error:
            raise Cancelled("the call was cancelled") from error
        return answer

    def cancel(self) -> None:
        self._future.cancel()


class Channel:
    """A Transport over one gRPC channel. Safe to use from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._target = connection.target
        self._metadata = connection.metadata()
        credentials, options = connection.credentials(), connection.options()
        if credentials is None:
            self._channel = grpc.insecure_channel(connection.target, options)
        else:
            self._channel = grpc.secure_channel(connection.target, credentials, options)
        self._methods = _methods(self._channel)
        self._is_closed = False
        self._cut_off = False

    def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """See Transport."""
        try:
            answer: bytes = self._methods[method](request, timeout, self._metadata)
        except grpc.RpcError as error:
            raise _translate(error) from error
        except ValueError as error:
            raise self._misuse(error) from error
        return answer

    def start(self, method: str, request: bytes, timeout: float) -> Pending:
        """See Transport."""
        try:
            return _Pending(self._methods[method].future(request, timeout, self._metadata))
        except ValueError as error:
            raise self._misuse(error) from error
        except BaseException:
            self._cut_off = True
            raise

    def close(self) -> None:
        """See Transport."""
        self._is_closed = True
        if self._cut_off:
            # Ctrl-C in the moment between sending a call and watching it leaves grpc with a call that nobody watches.
            # Closing cancels it, and then waits for its end for ever: it may do that where nobody waits with it.
            threading.Thread(target=self._channel.close, daemon=True).start()
        else:
            self._channel.close()

    def _misuse(self, error: ValueError) -> Exception:
        # grpc raises a bare ValueError for a call on a closed channel.
        return _closed(self._target) if self._is_closed else error


class AsyncChannel:
    """An AsyncTransport over one gRPC channel, which belongs to the event loop of its first call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._metadata = connection.metadata()
        self._credentials = connection.credentials()
        self._channel: Any = None
        self._methods: dict[str, Any] = {}
        self._closing = False

    async def call(self, method: str, request: bytes, timeout: float) -> bytes:
        """See AsyncTransport."""
        self._check_open()
        if self._channel is None:
            self._open()
        try:
            answer: bytes = await self._methods[method](request, timeout=timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling() or not self._closing:
                raise
            # grpc ends the calls of a closed channel as if their tasks had been cancelled.
            raise Cancelled("the client was closed under the call") from error
        return answer

    async def close(self) -> None:
        """See AsyncTransport."""
        self._closing = True
        if self._channel is not None:
            await self._channel.close()

    def _check_open(self) -> None:
        if self._closing:
            raise _closed(self._connection.target)

    def _open(self) -> None:
        options = self._connection.options()
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self._connection.target, options)
        else:
            self._channel = grpc.aio.secure_channel(self._connection.target, self._credentials, options)
        self._methods = _methods(self._channel)


def _methods(channel: Any) -> dict[str, Any]:
    """The unary methods by name. They take and give bytes: messages are not this module's business."""
    return {name: channel.unary_unary(method.path) for name, method in METHODS.items() if not method.streaming}
