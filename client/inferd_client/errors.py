"""What can go wrong, as one tree, and the one place where a gRPC status becomes an error of it.

    InferdError                     everything that this library raises about a call
    ├── InvalidInput                the request is wrong, found here or by the server (also a ValueError)
    ├── MessageTooLarge             a request or an answer over a size limit, here or there
    ├── ModelNotFound               no such model, version or region
    ├── Unauthenticated             no credentials, or not the right ones
    ├── PermissionDenied            known, but not allowed
    ├── Unimplemented               the server does not have this RPC or feature
    ├── Unavailable                 no server answered; may be better in a moment
    │   ├── Overloaded              a queue is full, or the request waited too long in it
    │   ├── NotReady                the model is loading, or its load failed
    │   ├── Draining                that server is shutting down
    │   └── ControlOff              loading and unloading by request is switched off
    ├── DeadlineExceeded            the call took longer than its timeout (also a TimeoutError)
    ├── Cancelled                   somebody cancelled the call, or closed the client under it
    ├── ServerFault                 the server or its runtime failed
    ├── BadResponse                 an answer that does not follow the protocol
    └── ClientClosed                the client was used after it was closed

A server that gives no reason beside UNAVAILABLE (Triton gives none) raises Unavailable itself.
"""

from __future__ import annotations

from inferd_protocol.reasons import Reason


class InferdError(Exception):
    """The root of the tree. Its text is one sentence; where the server refused, the server's own."""


class InvalidInput(InferdError, ValueError):
    """The request is wrong: a name, a shape, a datatype, a parameter."""


class MessageTooLarge(InferdError):
    """A request or an answer over a size limit."""


class ModelNotFound(InferdError):
    """The server has no such model or version."""


class Unauthenticated(InferdError):
    """The call carried no valid credentials."""


class PermissionDenied(InferdError):
    """The credentials do not allow the call."""


class Unimplemented(InferdError):
    """The server does not have this RPC or feature."""


class Unavailable(InferdError):
    """No server answered, or the one that did cannot serve now."""


class Overloaded(Unavailable):
    """The model's queue is full, or the request waited in it for longer than allowed."""


class NotReady(Unavailable):
    """The model is loading, or its load failed."""


class Draining(Unavailable):
    """The server is shutting down; another one may answer."""


class ControlOff(Unavailable):
    """The server does not load or unload by request."""


class DeadlineExceeded(InferdError, TimeoutError):
    """The call took longer than its timeout."""


class Cancelled(InferdError):
    """The call was cancelled before it was answered."""


class ServerFault(InferdError):
    """The server, or the runtime under it, failed."""


class BadResponse(InferdError):
    """The answer does not follow the protocol."""


class ClientClosed(InferdError):
    """The client was used after it was closed."""


_BY_CODE: dict[str, type[InferdError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "RESOURCE_EXHAUSTED": MessageTooLarge,
    "NOT_FOUND": ModelNotFound,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "UNIMPLEMENTED": Unimplemented,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}

_BY_REASON: dict[str, type[InferdError]] = {
    Reason.QUEUE_FULL: Overloaded,
    Reason.QUEUE_TIMEOUT: Overloaded,
    Reason.LOADING: NotReady,
    Reason.DRAINING: Draining,
    Reason.CONTROL_OFF: ControlOff,
}


def from_status(code: str, message: str, reason: str | None) -> InferdError:
    """The error for a status: `code` is its name (`UNAVAILABLE`), `reason` the value under REASON_KEY, if any.

    A code without an entry is the server's fault: INTERNAL, UNKNOWN, DATA_LOSS and what else there may come to be.
    """
    kind = _BY_CODE.get(code, ServerFault)
    if kind is Unavailable and reason is not None:
        kind = _BY_REASON.get(reason, Unavailable)
    return kind(message or f"the server answered {code} without a message")
