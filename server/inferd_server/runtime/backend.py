"""The interface behind which models run. Everything above it is free of any runtime's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from inferd_protocol.datatypes import Datatype
from inferd_protocol.tensors import Tensor

Dim = int | str | None
"""A size, the name of a size that may vary, or None for one that varies without a name."""

CPU_PROVIDER = "CPUExecutionProvider"
"""The execution provider that is the CPU; every other one is a device of its own."""


class GraphLevel(Enum):
    """How far a graph is optimized before it runs."""

    NONE = "none"
    BASIC = "basic"
    EXTENDED = "extended"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What one model asks of its runtime. Threads of 0 are left to the backend."""

    intra_op_threads: int = 0
    inter_op_threads: int = 1
    parallel: bool = False
    """Whether branches of the graph run at the same time."""
    memory_arena: bool = True
    memory_pattern: bool = True
    graph_level: GraphLevel = GraphLevel.ALL
    entries: Mapping[str, str] = field(default_factory=dict)
    """Options of the runtime under its own names."""
    explicit: frozenset[str] = field(default=frozenset(), compare=False)
    """Names of the fields that an operator has set, which nothing else may choose."""
    most_rows: int = field(default=0, compare=False)
    """Most rows that a run will have, as far as that is known before the model is; 0 where it is not."""


DEFAULT_SETTINGS = SessionSettings()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output as the model file declares it."""

    name: str
    datatype: Datatype
    shape: tuple[Dim, ...]

    @property
    def sizes(self) -> list[int]:
        """The shape as clients read it: -1 for any size."""
        return [dim if isinstance(dim, int) else -1 for dim in self.shape]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape fits."""
        return len(shape) == len(self.shape) and all(
            dim == size or not isinstance(dim, int) for dim, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, and the metadata written into its file."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]


class RuntimeModel(Protocol):
    """A model that is loaded and can be run from any thread."""

    signature: Signature
    provider: str
    """The execution provider in use, under the runtime's own name."""

    tuned: str
    """The session options that were chosen by measuring, in words; empty where none were."""

    def prepare(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """Makes it as fast as it can be before it is called: chooses options, takes memory on the device.

        `samples`: inputs of the smallest and of the largest run. Its answers stay what they were. Not to be called
        while it runs. Raises LoadError where it cannot be run as the operator asks.
        """

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs `inputs` (the signature's order) and returns every output (the signature's order).

        Raises InvalidRequest where the runtime blames the inputs, RuntimeFailure for anything else.
        """

    def close(self) -> None:
        """Frees the model. It must not be running."""


class Backend(Protocol):
    """A runtime that loads model files."""

    platform: str
    """The platform's name in model metadata and config.pbtxt."""

    def load(self, path: Path, settings: SessionSettings = DEFAULT_SETTINGS) -> RuntimeModel:
        """Loads a model file under the settings that it asks for.

        Raises LoadError where the file is no model that this runtime and its device can run.
        """
