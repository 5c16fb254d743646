"""Everything that can go wrong in the server, as one small family.

    ServerError                  a call is answered with a status
    ├── InvalidRequest           the request contradicts the model or itself
    ├── MalformedMessage         the bytes are no message of the RPC
    ├── MessageTooLarge          the message, or its answer, is larger than the server allows
    ├── ModelNotFound            no such model, or no such version is served
    ├── RegionNotFound           no such shared memory region
    ├── RegionExists             a shared memory region of the name is registered already
    ├── TooManyRegions           as many shared memory regions are registered as there may be
    ├── Unavailable              not now; `reason` says which kind of not now
    │   ├── ModelNotReady        known, but loading, or its load failed
    │   ├── QueueFull            overloaded
    │   ├── TooManySequences     no room for one more sequence
    │   ├── QueueTimeout         waited longer than the request or its model allows
    │   ├── Draining             shutting down
    │   └── ControlOff           loading and unloading by request is switched off
    ├── DeadlineExceeded         the client's deadline passed before the run
    ├── NotBuilt                 a part of the protocol that this server does not have
    ├── LoadFailed               a model that was to be loaded by request did not load
    └── RuntimeFailure           the runtime failed on a valid request

    LoadError                    a model cannot be served; kept as its reason, never a crash
    ConfigurationError           the server cannot start as it was asked to; exit status 2

`frontend.status` holds the one table from these to gRPC status codes.
"""

from __future__ import annotations

from typing import Self

from inferd_protocol.reasons import Reason


class ServerError(Exception):
    """A call that is answered with a status. The message is one sentence for the caller."""

    def within(self, place: str) -> Self:
        """The same error, whose sentence says first where it was met."""
        error = type(self).__new__(type(self), f"{place}: {self}")
        error.__cause__ = self
        return error


class InvalidRequest(ServerError):
    """The request contradicts the model, or itself."""


class MalformedMessage(ServerError):
    """The bytes received are no message of the RPC."""


class MessageTooLarge(ServerError):
    """A message that is larger than the server allows. `what` is the request or the answer, sizes are bytes."""

    def __init__(self, what: str, size: int, limit: int) -> None:
        super().__init__(f"the {what} has {size} bytes, expected at most {limit}: send fewer rows in one call")


class ModelNotFound(ServerError):
    """No such model, or no such version of it is served."""


class RegionNotFound(ServerError):
    """No shared memory region of that name is registered."""


class RegionExists(ServerError):
    """A shared memory region of that name is registered already."""


class TooManyRegions(ServerError):
    """As many shared memory regions are registered as there may be."""


class Unavailable(ServerError):
    """The call cannot be answered now."""

    reason: Reason


class ModelNotReady(Unavailable):
    """The model is known, and its version is loading or failed to load."""

    reason = Reason.LOADING

    def __init__(self, model: str, version: int | None, why: str) -> None:
        name = f"model '{model}'" + ("" if version is None else f" version {version}")
        super().__init__(f"{name} is not ready: {why}")


class QueueFull(Unavailable):
    """The model's queue has no room."""

    reason = Reason.QUEUE_FULL

    def __init__(self, limit: str) -> None:
        super().__init__(f"the queue is full ({limit}): send less at once, or try again later")


class TooManySequences(Unavailable):
    """The model keeps as many sequences as it may."""

    reason = Reason.QUEUE_FULL

    def __init__(self, model: str, limit: int) -> None:
        super().__init__(
            f"model '{model}' has {limit} live sequences, the most it may have: end some with sequence_end, or try "
            "again later"
        )


class QueueTimeout(Unavailable):
    """The request waited longer than its own `timeout` parameter, or its model's default, allows."""

    reason = Reason.QUEUE_TIMEOUT

    def __init__(self) -> None:
        super().__init__("the request waited in the queue longer than its timeout, or that of its model, allows")


class Draining(Unavailable):
    """The server is shutting down."""

    reason = Reason.DRAINING

    def __init__(self) -> None:
        super().__init__("the server, or this version of the model, is shutting down: send the request again")


class ControlOff(Unavailable):
    """Models are not loaded and unloaded by request."""

    reason = Reason.CONTROL_OFF

    def __init__(self) -> None:
        super().__init__(
            "loading and unloading by request is switched off: start the server with --model-control-mode explicit"
        )


class DeadlineExceeded(ServerError):
    """The client's deadline passed before its request could run."""

    def __init__(self) -> None:
        super().__init__("the deadline of the call passed while the request waited in the queue")


class NotBuilt(ServerError):
    """A part of the protocol that this server does not have."""


class LoadFailed(ServerError):
    """A model that was to be loaded by request did not load."""


class RuntimeFailure(ServerError):
    """The runtime failed on a request that was valid."""


class LoadError(Exception):
    """A model that cannot be served: the message says why."""


class ConfigurationError(Exception):
    """The server cannot start as it was asked to: the message says what to change."""
