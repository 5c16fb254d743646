"""The one table from errors to the reasons that failures are counted under."""

from __future__ import annotations

from inferd_server.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MalformedMessage,
    MessageTooLarge,
    ModelNotFound,
    NotBuilt,
    RuntimeFailure,
    Unavailable,
)

CANCELLED = "cancelled"
"""The caller has gone."""
DEFECT = "defect"
"""The server itself failed."""

_REASONS: dict[type[Exception], str] = {
    InvalidRequest: "invalid",
    MalformedMessage: "malformed",
    MessageTooLarge: "too_large",
    ModelNotFound: "not_found",
    DeadlineExceeded: "deadline",
    NotBuilt: "not_built",
    RuntimeFailure: "runtime",
}


def reason_of(error: Exception) -> str:
    """The reason, a word: for Unavailable the one that its caller is told."""
    if isinstance(error, Unavailable):
        return str(error.reason)
    return next((_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS), DEFECT)
