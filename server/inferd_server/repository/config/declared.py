"""What a config.pbtxt says, as the server understands it: checked as far as that can be done without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inferd_protocol.model_config_pb2 import ModelConfig as Message

from inferd_server.repository.version_policy import Latest, VersionPolicy
from inferd_server.runtime.backend import SessionSettings


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """An input or output as clients see it: `dims` without the batch axis, -1 for any size.

    `config_type` is empty where only the name is declared: datatype and dims are then the model's. `reshape` is the
    model's own shape where that differs.
    """

    name: str
    config_type: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeclaredSample:
    """An input of a warm-up request, one row: zeros where it is neither `random` nor read from a `file`."""

    config_type: str
    dims: tuple[int, ...]
    random: bool = False
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class DeclaredWarmUp:
    """A request of `batch_size` equal rows that is run `count` times at load."""

    name: str
    batch_size: int
    count: int
    inputs: Mapping[str, DeclaredSample]


@dataclass(frozen=True, slots=True)
class DeclaredBatching:
    """How requests wait and run together. 0 leaves it to the server."""

    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    max_queue_size: int = 0
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False


@dataclass(frozen=True, slots=True)
class DeclaredState:
    """A state: `dims` without the batch axis, -1 for any size; `first_dims` are those it begins with."""

    input: str
    output: str
    config_type: str
    dims: tuple[int, ...]
    first_dims: tuple[int, ...]
    first_name: str = ""
    """What errors call that."""


@dataclass(frozen=True, slots=True)
class DeclaredFlag:
    """A control of two values: `kind` is `start`, `end` or `ready`."""

    input: str
    kind: str
    config_type: str
    false: float
    true: float


@dataclass(frozen=True, slots=True)
class DeclaredId:
    """The control that carries the sequence's id."""

    input: str
    config_type: str


@dataclass(frozen=True, slots=True)
class DeclaredSequences:
    """What `sequence_batching` says. `max_sequences` is None where it does not."""

    idle_microseconds: int
    max_sequences: int | None
    states: tuple[DeclaredState, ...]
    flags: tuple[DeclaredFlag, ...]
    ids: tuple[DeclaredId, ...]


@dataclass(frozen=True, slots=True)
class DeclaredStep:
    """One model of an ensemble's pipeline. `version` is None for the latest that is READY."""

    number: int
    """From 1, as errors count."""
    model: str
    version: int | None
    inputs: Mapping[str, str]
    """By input of the model: the pipeline's tensor that it gets."""
    outputs: Mapping[str, str]
    """By output of the model: the pipeline's tensor that it becomes."""

    @property
    def version_text(self) -> str:
        """The version as requests write it."""
        return "" if self.version is None else str(self.version)

    def __str__(self) -> str:
        return f"step {self.number} (model '{self.model}')"


@dataclass(frozen=True, slots=True)
class DeclaredConfig:
    """What a config.pbtxt says. What is None, or 0 where 0 would make no sense, is left to the model or the server."""

    source: str = "config.pbtxt"
    """What errors call it."""
    max_batch_size: int | None = None
    version_policy: VersionPolicy = field(default_factory=Latest)
    inputs: tuple[DeclaredTensor, ...] = ()
    outputs: tuple[DeclaredTensor, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By output."""
    model_filename: str = ""
    instances: int = 0
    kind: str = "KIND_AUTO"
    batching: DeclaredBatching = field(default_factory=DeclaredBatching)
    session: SessionSettings = field(default_factory=SessionSettings)
    warm_ups: tuple[DeclaredWarmUp, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    version_labels: Mapping[str, int] = field(default_factory=dict)
    """Versions by label, where they are READY and no request has said otherwise."""
    metric_tags: Mapping[str, str] = field(default_factory=dict)
    response_cache: bool = False
    sequences: DeclaredSequences | None = None
    """None for a model that keeps none."""
    steps: tuple[DeclaredStep, ...] = ()
    """Those of an ensemble; none of a model that has a file."""
    message: Message = field(default_factory=Message)
    """All of it as it was written. Not to be changed."""
