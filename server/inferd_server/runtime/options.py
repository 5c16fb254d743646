"""What the operator asks of the runtime, apart from the device: one value, made from the server's settings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from inferd_server.config import Precision, ServerConfig, Tune


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How an NVIDIA GPU is used."""

    allow_tf32: bool = False
    cuda_graphs: bool = False
    memory_limit_bytes: int = 0
    """Of each model's arena; 0 for no limit."""
    arena_shrinkage: bool = False
    tensorrt_precision: Precision = Precision.FP32


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """Whether session options are measured, and for how long."""

    on: bool = False
    seconds: float = 5.0
    threads_are_set: bool = False
    """Whether the operator has said how many threads a run has."""
    instances: int = 1
    workers: int = 1


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """All of it. The defaults are those of a server started without flags."""

    gpu: GpuOptions = field(default_factory=GpuOptions)
    tune: TuneOptions = field(default_factory=TuneOptions)
    cache: Path = field(default_factory=lambda: default_cache())


def default_cache() -> Path:
    """The folder of the XDG base directory specification: inferd in $XDG_CACHE_HOME, else in ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    # The specification: a path that is not absolute is to be ignored.
    base = Path(named) if named.startswith("/") else Path(os.path.expanduser("~")) / ".cache"
    return base / "inferd"


def from_config(config: ServerConfig) -> RuntimeOptions:
    """The runtime's part of the server's settings."""
    return RuntimeOptions(
        gpu=GpuOptions(
            allow_tf32=config.allow_tf32,
            cuda_graphs=config.cuda_graphs,
            memory_limit_bytes=config.gpu_memory_limit_bytes,
            arena_shrinkage=config.gpu_arena_shrinkage,
            tensorrt_precision=config.tensorrt_precision,
        ),
        tune=TuneOptions(
            on=config.tune is Tune.ON,
            seconds=config.tune_secs,
            threads_are_set=bool(config.intra_op_threads),
            instances=config.instances,
            workers=config.workers,
        ),
        cache=config.cache_dir or default_cache(),
    )
