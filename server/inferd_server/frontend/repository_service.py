"""The RPCs of the model repository extension: what is there, load it, unload it; and labels of versions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol import wire
from inferd_protocol.reasons import LABEL_PREFIX

from inferd_server.background import run_in_background
from inferd_server.errors import InvalidRequest
from inferd_server.frontend.services import Handler
from inferd_server.repository.lifecycle import ModelEntry, State
from inferd_server.repository.manager import RepositoryManager
from inferd_server.repository.override import Override

_FIELD_2_TRUE = b"\x10\x01"
_CONFIG = "config"
_FILE_PREFIX = "file:"
_UNLOAD_DEPENDENTS = "unload_dependents"


class RepositoryService:
    """RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload.

    Version labels come as parameters `label:<label>` of a load, an int64 version each, 0 for none: such a load moves
    labels, at once, and loads nothing.
    """

    names = ("model_repository", "model_repository(unload_dependents)")

    def __init__(self, repository: RepositoryManager) -> None:
        self._repository = repository

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {
            "RepositoryIndex": self.index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
        }

    def index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Every model in the repository, each version with its state; those that are READY alone where so asked."""
        _check_repository(request.repository_name)
        models = [row for name, model in self._repository.listed().items() for row in _rows(name, model)]
        return pb.RepositoryIndexResponse(
            models=[row for row in models if row.state == State.READY or not request.ready]
        )

    def load(self, request: pb.RepositoryModelLoadRequest) -> asyncio.Future[pb.RepositoryModelLoadResponse]:
        """Loads a model, or moves labels of its versions."""
        name, parameters = _model_name(request), request.parameters
        labels = {key: value for key, value in parameters.items() if key.startswith(LABEL_PREFIX)}
        override = None if labels and len(labels) == len(parameters) else _override(parameters)

        def work() -> pb.RepositoryModelLoadResponse:
            if labels:
                for key, value in labels.items():
                    self._repository.set_label(name, key.removeprefix(LABEL_PREFIX), _version(key, value))
            else:
                self._repository.load(name, override)
            return pb.RepositoryModelLoadResponse.FromString(_outcome(request))

        return run_in_background(work, f"load-{name}")

    def unload(self, request: pb.RepositoryModelUnloadRequest) -> asyncio.Future[pb.RepositoryModelUnloadResponse]:
        """Unloads a model, and the models that only it runs where so asked; answers when their memory is free."""
        name = _model_name(request)
        for key, value in request.parameters.items():
            if key != _UNLOAD_DEPENDENTS or value.WhichOneof("parameter_choice") != "bool_param":
                raise InvalidRequest(f"parameter '{key}' of an unload: expected '{_UNLOAD_DEPENDENTS}', a bool")

        dependents = request.parameters[_UNLOAD_DEPENDENTS].bool_param if request.parameters else False

        def work() -> pb.RepositoryModelUnloadResponse:
            self._repository.unload(name, dependents=dependents)
            return pb.RepositoryModelUnloadResponse.FromString(_outcome(request))

        return run_in_background(work, f"unload-{name}")


def _rows(name: str, model: ModelEntry) -> list[pb.RepositoryIndexResponse.ModelIndex]:
    row = pb.RepositoryIndexResponse.ModelIndex
    if not model.versions:
        return [row(name=name, state=State.UNAVAILABLE, reason=model.failure)]
    return [
        row(name=name, version=str(version), state=entry.state, reason=model.failure or entry.reason)
        for version, entry in model.versions.items()
    ]


_Change: TypeAlias = pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest


def _model_name(request: _Change) -> str:
    """The model to load or unload. KServe's protocol has its name where Triton's has the repository's."""
    if not request.model_name:
        return request.repository_name
    _check_repository(request.repository_name)
    return request.model_name


def _outcome(request: _Change) -> bytes:
    """The fields of an answer: none in Triton's protocol, the model's name and that it is done in KServe's."""
    if request.model_name:
        return b""
    name = request.repository_name.encode()
    return wire.prefix(1, len(name)) + name + _FIELD_2_TRUE


def _check_repository(name: str) -> None:
    if name:
        raise InvalidRequest(f"repository '{name}' is unknown: this server has one, expected an empty repository_name")


def _override(parameters: Mapping[str, pb.ModelRepositoryParameter]) -> Override | None:
    files: dict[str, bytes] = {}
    config: str | None = None
    for key, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if key == _CONFIG:
            if kind != "string_param":
                raise InvalidRequest(f"parameter 'config' is expected to be a string of JSON, got {kind or 'nothing'}")
            config = value.string_param
        elif key.startswith(_FILE_PREFIX):
            if kind != "bytes_param":
                raise InvalidRequest(f"parameter '{key}' is expected to be bytes, got {kind or 'nothing'}")
            files[key.removeprefix(_FILE_PREFIX)] = value.bytes_param
        else:
            raise InvalidRequest(
                f"parameter '{key}' of a load is unknown: expected 'config', 'file:<version>/<name>', or, alone, "
                f"'{LABEL_PREFIX}<label>'"
            )
    if files and config is None:
        raise InvalidRequest("parameters 'file:...' need a parameter 'config' beside them, '{}' for none of its own")
    return None if config is None else Override(config, files)


def _version(key: str, value: pb.ModelRepositoryParameter) -> int:
    if value.WhichOneof("parameter_choice") != "int64_param" or value.int64_param < 0:
        raise InvalidRequest(f"parameter '{key}' is expected to be a version, an int64 from 1, or 0 to take it away")
    return value.int64_param
