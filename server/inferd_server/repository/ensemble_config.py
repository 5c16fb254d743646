"""The pipeline of a config.pbtxt: `ensemble_scheduling`, as it is written and not yet held against any model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inferd_protocol import model_config_pb2

from inferd_server.errors import LoadError

PLATFORM = "ensemble"
"""The platform of a model that runs other models, in config.pbtxt and in metadata."""


@dataclass(frozen=True, slots=True)
class Step:
    """One model of a pipeline. `version` is None for the latest that is READY."""

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


def read_steps(source: str, message: model_config_pb2.ModelConfig) -> tuple[Step, ...]:
    """The steps of an ensemble, in the order written; none where the model is no ensemble.

    Raises LoadError where an ensemble has no steps, no tensors or a backend, or a step lacks what it needs.
    """
    if not message.HasField("ensemble_scheduling"):
        if message.platform == PLATFORM:
            raise LoadError(f"{source} says platform: '{PLATFORM}', and has no ensemble_scheduling with its steps")
        return ()
    if message.platform not in ("", PLATFORM):
        raise LoadError(
            f"{source} has ensemble_scheduling and says platform: '{message.platform}', expected '{PLATFORM}'"
        )
    if message.backend:
        raise LoadError(f"{source} has ensemble_scheduling and says backend: '{message.backend}', expected none")
    if message.ensemble_scheduling.max_inflight_requests:
        raise LoadError(
            f"{source} sets ensemble_scheduling.max_inflight_requests, which this server does not have: take it out"
        )
    if not message.input or not message.output:
        raise LoadError(f"{source} has ensemble_scheduling, and so is expected to declare its input and its output")
    if not message.ensemble_scheduling.step:
        raise LoadError(f"{source} has an ensemble_scheduling without a step")
    return tuple(_step(source, number, step) for number, step in enumerate(message.ensemble_scheduling.step, 1))


def _step(source: str, number: int, step: model_config_pb2.ModelEnsembling.Step) -> Step:
    if not step.model_name:
        raise LoadError(f"{source}: step {number} has no model_name")
    # An absent version reads as 0, which no version is.
    version = step.model_version if step.model_version not in (-1, 0) else None
    read = Step(number, step.model_name, version, dict(step.input_map), dict(step.output_map))
    if step.model_namespace:
        raise LoadError(f"{source}: {read} sets model_namespace, which this server does not have: take it out")
    if version is not None and version < 1:
        raise LoadError(f"{source}: {read} says model_version: {version}, expected one from 1, or -1 for the latest")
    for field, entries in (("input_map", step.input_map), ("output_map", step.output_map)):
        if not entries:
            raise LoadError(f"{source}: {read} has no {field}")
        for key, value in entries.items():
            if not key or not value:
                raise LoadError(f"{source}: {read} has an {field} with an empty key or value")
    return read
