"""What a server's repository holds and how it is told to change: loads, unloads, labels, configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from inferd_protocol.grpc_service_pb2 import (
    ModelConfigResponse,
    ModelRepositoryParameter,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest,
)
from inferd_protocol.reasons import LABEL_PREFIX

from inferd_client.errors import BadResponse, InvalidInput

_PROVIDER = "provider"
_FILE = re.compile(r"\d+/.+")


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """A version of a model in the repository. `state` is READY, UNAVAILABLE, LOADING or UNLOADING, `reason` says why.

    A model that has never been loaded may have neither version nor state.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration: what it takes, how it is batched and run.

    `labels` are its version labels with the versions that they stand for; `provider` is ONNX Runtime's execution
    provider; both are inferd's own, and empty elsewhere. `fields` is the whole configuration under the names of
    config.pbtxt, as it would be in JSON: change it and give it to `load_model`. 64-bit integers are strings in it.
    """

    name: str
    platform: str
    backend: str
    max_batch_size: int
    labels: Mapping[str, int]
    provider: str
    fields: Mapping[str, Any]


def load_request(
    name: str,
    config: Mapping[str, Any] | str | None,
    files: Mapping[str, bytes] | None,
    labels: Mapping[str, int] | None,
) -> bytes:
    """A serialised RepositoryModelLoadRequest.

    Raises InvalidInput for files without a config or of a wrong name, and for a label without a name or of a version
    that is no version.
    """
    request = RepositoryModelLoadRequest(model_name=name)
    parameters = request.parameters
    if config is not None:
        parameters["config"].string_param = config if isinstance(config, str) else json.dumps(config)
    if files and config is None:
        raise InvalidInput(f"files of model '{name}' need a config: the server takes nothing from its repository then")
    for path, content in (files or {}).items():
        if not _FILE.fullmatch(path):
            raise InvalidInput(f"a file is named <version>/<path>, for example 1/model.onnx, got '{path}'")
        parameters[f"file:{path}"].bytes_param = content
    for label, version in (labels or {}).items():
        if not label:
            raise InvalidInput(f"a label of model '{name}' has no name")
        if not 0 <= version < 2**63:
            raise InvalidInput(f"label '{label}' stands for a version of 1 or more, or 0 to remove it, got {version}")
        parameters[LABEL_PREFIX + label].CopyFrom(ModelRepositoryParameter(int64_param=version))
    return request.SerializeToString()


def unload_request(name: str, unload_dependents: bool) -> bytes:
    """A serialised RepositoryModelUnloadRequest."""
    request = RepositoryModelUnloadRequest(model_name=name)
    if unload_dependents:
        request.parameters["unload_dependents"].bool_param = True
    return request.SerializeToString()


def parse_index(data: bytes) -> tuple[ModelIndex, ...]:
    """A serialised RepositoryIndexResponse, in its order.

    Raises BadResponse for bytes that are none.
    """
    try:
        message = RepositoryIndexResponse.FromString(data)
    except DecodeError as error:
        raise BadResponse(f"the answer to RepositoryIndex is not one: {error}") from error
    return tuple(ModelIndex(model.name, model.version, model.state, model.reason) for model in message.models)


def parse_config(data: bytes) -> ModelConfig:
    """A serialised ModelConfigResponse.

    Raises BadResponse for bytes that are none.
    """
    try:
        config = ModelConfigResponse.FromString(data).config
    except DecodeError as error:
        raise BadResponse(f"the answer to ModelConfig is not one: {error}") from error
    parameters = {key: parameter.string_value for key, parameter in config.parameters.items()}
    # Another server's parameters are a backend's own: one that only looks like a label is none.
    labels = {
        key.removeprefix(LABEL_PREFIX): int(value)
        for key, value in sorted(parameters.items())
        if key.startswith(LABEL_PREFIX) and value.isdecimal()
    }
    return ModelConfig(
        config.name,
        config.platform,
        config.backend,
        config.max_batch_size,
        labels,
        parameters.get(_PROVIDER, ""),
        MessageToDict(config, preserving_proto_field_name=True),
    )
