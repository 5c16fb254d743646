"""What a server says about itself and its models, as values of the client's own rather than protobuf messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from inferd_protocol.datatypes import BY_NAME, Datatype
from inferd_protocol.grpc_service_pb2 import ModelMetadataResponse, ServerMetadataResponse

from inferd_client.errors import BadResponse


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """A server's name and version, and the names of the protocol extensions that work on it."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or an output of a model. `shape` is that of the whole array, batch axis included; -1 is any size."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's versions that are served, what runs it, and its tensors in the model's own order."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]

    @property
    def batched(self) -> bool:
        """Whether every input and output begins with an axis of any size: its rows can travel in several requests."""
        tensors = self.inputs + self.outputs
        return bool(tensors) and all(tensor.shape[:1] == (-1,) for tensor in tensors)


def parse_server(data: bytes) -> ServerMetadata:
    """A serialised ServerMetadataResponse.

    Raises BadResponse for bytes that are none.
    """
    try:
        message = ServerMetadataResponse.FromString(data)
    except DecodeError as error:
        raise BadResponse(f"the answer to ServerMetadata is not one: {error}") from error
    return ServerMetadata(message.name, message.version, tuple(message.extensions))


def parse_model(data: bytes) -> ModelMetadata:
    """A serialised ModelMetadataResponse.

    Raises BadResponse for bytes that are none, and for a datatype that the protocol does not have.
    """
    try:
        message = ModelMetadataResponse.FromString(data)
    except DecodeError as error:
        raise BadResponse(f"the answer to ModelMetadata is not one: {error}") from error
    return ModelMetadata(
        message.name,
        tuple(message.versions),
        message.platform,
        _tensors(message.name, message.inputs),
        _tensors(message.name, message.outputs),
    )


def _tensors(model: str, messages: Sequence[ModelMetadataResponse.TensorMetadata]) -> tuple[TensorMetadata, ...]:
    tensors = []
    for message in messages:
        datatype = BY_NAME.get(message.datatype)
        if datatype is None:
            raise BadResponse(f"tensor '{message.name}' of model '{model}' has the unknown datatype {message.datatype}")
        tensors.append(TensorMetadata(message.name, datatype, tuple(message.shape)))
    return tuple(tensors)
