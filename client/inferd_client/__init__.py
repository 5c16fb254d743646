"""The client library of inferd: models over gRPC, numpy in and numpy out.

    from inferd_client import Client

    with Client("localhost:8001") as client:
        result = client.infer("fashion", {"image": images})
        result["probabilities"]

It speaks the Open Inference Protocol v2, so it works with any server of it. Names are imported when they are first
used: the command line imports this package only to say what it can do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferd_client.aio import AsyncClient
    from inferd_client.channel import DEFAULT_MAX_MESSAGE_BYTES, Tls
    from inferd_client.client import Client
    from inferd_client.errors import (
        BadResponse,
        Cancelled,
        ClientClosed,
        ControlOff,
        DeadlineExceeded,
        Draining,
        InferdError,
        InvalidInput,
        MessageTooLarge,
        ModelNotFound,
        NotReady,
        Overloaded,
        PermissionDenied,
        ServerFault,
        Unauthenticated,
        Unavailable,
        Unimplemented,
    )
    from inferd_client.metadata import ModelMetadata, ServerMetadata, TensorMetadata
    from inferd_client.model_statistics import BatchStatistics, Duration, ModelStatistics
    from inferd_client.repository import ModelConfig, ModelIndex
    from inferd_client.results import Classification, InferResult, parse_classes, top_classes
    from inferd_client.retry import NO_RETRY, Retry

_HOMES = {
    "AsyncClient": "aio",
    "BadResponse": "errors",
    "BatchStatistics": "model_statistics",
    "Cancelled": "errors",
    "Classification": "results",
    "Client": "client",
    "ClientClosed": "errors",
    "ControlOff": "errors",
    "DEFAULT_MAX_MESSAGE_BYTES": "channel",
    "DeadlineExceeded": "errors",
    "Draining": "errors",
    "Duration": "model_statistics",
    "InferResult": "results",
    "InferdError": "errors",
    "InvalidInput": "errors",
    "MessageTooLarge": "errors",
    "ModelConfig": "repository",
    "ModelIndex": "repository",
    "ModelMetadata": "metadata",
    "ModelNotFound": "errors",
    "ModelStatistics": "model_statistics",
    "NO_RETRY": "retry",
    "NotReady": "errors",
    "Overloaded": "errors",
    "PermissionDenied": "errors",
    "Retry": "retry",
    "ServerFault": "errors",
    "ServerMetadata": "metadata",
    "TensorMetadata": "metadata",
    "Tls": "channel",
    "Unauthenticated": "errors",
    "Unavailable": "errors",
    "Unimplemented": "errors",
    "parse_classes": "results",
    "top_classes": "results",
}

__all__ = [
    "DEFAULT_MAX_MESSAGE_BYTES",
    "NO_RETRY",
    "AsyncClient",
    "BadResponse",
    "BatchStatistics",
    "Cancelled",
    "Classification",
    "Client",
    "ClientClosed",
    "ControlOff",
    "DeadlineExceeded",
    "Draining",
    "Duration",
    "InferResult",
    "InferdError",
    "InvalidInput",
    "MessageTooLarge",
    "ModelConfig",
    "ModelIndex",
    "ModelMetadata",
    "ModelNotFound",
    "ModelStatistics",
    "NotReady",
    "Overloaded",
    "PermissionDenied",
    "Retry",
    "ServerFault",
    "ServerMetadata",
    "TensorMetadata",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "parse_classes",
    "top_classes",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # found here from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
