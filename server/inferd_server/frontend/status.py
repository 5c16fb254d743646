"""The one table from errors to gRPC status codes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
from inferd_protocol.reasons import REASON_KEY

from inferd_server.errors import (
    DeadlineExceeded,
    InvalidRequest,
    LoadFailed,
    MalformedMessage,
    MessageTooLarge,
    ModelNotFound,
    NotBuilt,
    RegionExists,
    RegionNotFound,
    RuntimeFailure,
    ServerError,
    TooManyRegions,
    Unavailable,
)

_LOG = logging.getLogger(__name__)

_CODES: dict[type[ServerError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    MalformedMessage: grpc.StatusCode.INTERNAL,
    MessageTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    RegionNotFound: grpc.StatusCode.NOT_FOUND,
    RegionExists: grpc.StatusCode.ALREADY_EXISTS,
    TooManyRegions: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotBuilt: grpc.StatusCode.UNIMPLEMENTED,
    LoadFailed: grpc.StatusCode.INTERNAL,
    RuntimeFailure: grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class Status:
    """How a failed call ends: the code, the sentence, and trailing metadata."""

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str], ...] = ()


def status_of(error: Exception) -> Status:
    """The status that an error is answered with. What is no ServerError is a defect: it is logged, and not shown."""
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            reason = ((REASON_KEY, error.reason),) if isinstance(error, Unavailable) else ()
            return Status(code, str(error), reason)
    _LOG.error("a call failed on a defect of the server", exc_info=error)
    return Status(grpc.StatusCode.INTERNAL, "the server failed on this call: its log has the reason")
