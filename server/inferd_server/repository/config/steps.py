"""The pipeline of a config.pbtxt: `ensemble_scheduling`, as it is written and not yet held against any model."""

from __future__ import annotations

from inferd_protocol import model_config_pb2 as pb

from inferd_server.errors import LoadError
from inferd_server.repository.config import parameters
from inferd_server.repository.config.declared import DeclaredStep

PLATFORM = "ensemble"
"""The platform of a model that runs other models, in config.pbtxt and in metadata."""

_OF_FILES = ("optimization", "instance_group", "default_model_filename", "model_warmup", "response_cache")
"""Fields that say how a model's file is run, and of which a pipeline, which has none, could do nothing."""


def read_steps(source: str, message: pb.ModelConfig) -> tuple[DeclaredStep, ...]:
    """The steps of an ensemble, in the order written; none where the model is no ensemble.

    Raises LoadError where an ensemble has no steps, no tensors, or what only a model with a file has, or a step lacks
    what it needs.
    """
    if not message.HasField("ensemble_scheduling"):
        if message.platform == PLATFORM:
            raise LoadError(f"{source} says platform: '{PLATFORM}', and has no ensemble_scheduling with its steps")
        return ()
    if message.platform not in ("", PLATFORM):
        raise LoadError(
            f"{source} has ensemble_scheduling and says platform: {message.platform!r}, expected '{PLATFORM}'"
        )
    if message.backend:
        raise LoadError(f"{source} has ensemble_scheduling and says backend: {message.backend!r}, expected none")
    _refuse_what_files_have(source, message)
    if not message.input or not message.output:
        raise LoadError(f"{source} has ensemble_scheduling, and so is expected to declare its input and its output")
    if not message.ensemble_scheduling.step:
        raise LoadError(f"{source} has an ensemble_scheduling without a step")
    return tuple(_step(source, number, step) for number, step in enumerate(message.ensemble_scheduling.step, 1))


def _refuse_what_files_have(source: str, message: pb.ModelConfig) -> None:
    refused = [field.name for field, _ in message.ListFields() if field.name in _OF_FILES]
    refused += [f"parameters '{key}'" for key in message.parameters if parameters.is_of_runtime(key)]
    if refused:
        raise LoadError(
            f"{source} has ensemble_scheduling and sets {', '.join(refused)}, which is for the models that it runs: "
            "take it out"
        )
    for kind, tensors in (("input", message.input), ("output", message.output)):
        for tensor in tensors:
            if not tensor.data_type:
                raise LoadError(f"{source} declares {kind} '{tensor.name}' of an ensemble without its data_type")
            if tensor.HasField("reshape"):
                raise LoadError(
                    f"{source} sets reshape of {kind} '{tensor.name}', and an ensemble passes tensors on as they are: "
                    "take it out"
                )


def _step(source: str, number: int, step: pb.ModelEnsembling.Step) -> DeclaredStep:
    if not step.model_name:
        raise LoadError(f"{source}: step {number} has no model_name")
    # An absent version reads as 0, which no version is.
    version = step.model_version if step.model_version not in (-1, 0) else None
    read = DeclaredStep(number, step.model_name, version, dict(step.input_map), dict(step.output_map))
    if version is not None and version < 1:
        raise LoadError(f"{source}: {read} says model_version: {version}, expected one from 1, or -1 for the latest")
    for field, entries in (("input_map", step.input_map), ("output_map", step.output_map)):
        if not entries:
            raise LoadError(f"{source}: {read} has no {field}")
        for key, value in entries.items():
            if not key or not value:
                raise LoadError(f"{source}: {read} has an {field} with an empty key or value")
    return read
