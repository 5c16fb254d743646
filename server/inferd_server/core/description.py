"""What the server says of itself and its models."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import version

from inferd_protocol.model_config_pb2 import ModelConfig
from inferd_protocol.reasons import LABEL_PREFIX

from inferd_server.repository import model_config
from inferd_server.repository.lifecycle import State
from inferd_server.repository.manager import RepositoryManager
from inferd_server.runtime.backend import TensorSpec

SERVER_NAME = "inferd"

EXTENSIONS = ("binary_tensor_data", "classification", "parameters", "schedule_policy", "sequence")
"""The protocol's extensions that need no RPC of their own; `frontend.services` adds those that do."""


@dataclass(frozen=True, slots=True)
class TensorDescription:
    """A tensor as a client sends or receives it: -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """A model: its callable versions, and the tensors of the one asked for."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]


@functools.cache
def server_version() -> str:
    """The version of the installed distribution."""
    return version("inferd")


def describe_model(repository: RepositoryManager, name: str, version: str) -> ModelDescription:
    """Describes a model's version. Raises as `lifecycle.find` does."""
    servable = repository.find(name, version)
    entries = repository.models[name].versions
    return ModelDescription(
        name=name,
        versions=tuple(str(number) for number, entry in entries.items() if entry.state is State.READY),
        platform=servable.platform,
        inputs=tuple(map(_tensor, servable.signature.inputs)),
        outputs=tuple(map(_tensor, servable.signature.outputs)),
    )


def configuration(repository: RepositoryManager, name: str, version: str) -> ModelConfig:
    """The complete configuration of a model's version. Raises as `lifecycle.find` does."""
    servable = repository.find(name, version)
    complete = model_config.configuration(
        servable.name,
        servable.platform,
        servable.model.provider,
        servable.signature,
        servable.declared,
        servable.config,
        servable.tuned,
    )
    for label, number in repository.models[name].labels.items():
        complete.parameters[LABEL_PREFIX + label].string_value = str(number)
    return complete


def model_ready(repository: RepositoryManager, name: str, version: str) -> bool:
    """Whether a model's version can be called: False for one that is not known, as Triton 2.51 answers.

    An ensemble can be called where all the models that it runs can.

    Raises InvalidRequest where the version is no whole number.
    """
    return repository.can_be_called(name, version)


def _tensor(spec: TensorSpec) -> TensorDescription:
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape)
    return TensorDescription(spec.name, spec.datatype.name, shape)
