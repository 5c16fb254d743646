"""From a config.pbtxt, or the same in JSON, to what it declares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format, text_format
from inferd_protocol import model_config_pb2 as pb

from inferd_server.errors import LoadError
from inferd_server.repository.config import batching, files, parameters, warm_up
from inferd_server.repository.config.declared import DeclaredConfig, DeclaredTensor
from inferd_server.repository.config.fields import refuse
from inferd_server.repository.config.sequences import sequence_batching
from inferd_server.repository.config.steps import read_steps
from inferd_server.repository.config.values import data_type
from inferd_server.repository.version_policy import All, Latest, Specific, VersionPolicy

BACKEND = "onnxruntime"
JSON_SOURCE = "the config parameter"

_MOST_ROWS = 65536
"""Every batch size up to the largest is run at load: a slip of the finger must not take all memory."""


def read(path: Path | None, model: str, platform: str) -> DeclaredConfig:
    """Reads the config.pbtxt in the folder of `model`; without one nothing is declared.

    Raises LoadError where it cannot be parsed, is of another model or platform, sets a field that is not honoured or a
    value that makes no sense, or names a file that cannot be read.
    """
    if path is None:
        return DeclaredConfig()
    message = pb.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), message)
    except (OSError, ValueError, RecursionError, text_format.ParseError) as error:
        raise LoadError(f"{path.name} cannot be read: {_first_line(error)}") from error
    return _declared(path.name, message, path.parent, model, platform)


def read_json(text: str, folder: Path, model: str, platform: str) -> DeclaredConfig:
    """Reads the JSON form, as RepositoryModelLoad's parameter `config` brings it; files are looked for in `folder`.

    Raises LoadError as `read` does.
    """
    message = pb.ModelConfig()
    if not text.lstrip().startswith("{"):
        # The parser takes an empty list for an empty object.
        raise LoadError(f"{JSON_SOURCE} is expected to be a JSON object, the form of a model's configuration")
    try:
        json_format.Parse(text, message)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise LoadError(f"{JSON_SOURCE} is no JSON form of a model's configuration: {_first_line(error)}") from error
    return _declared(JSON_SOURCE, message, folder, model, platform)


def _declared(source: str, message: pb.ModelConfig, folder: Path, model: str, platform: str) -> DeclaredConfig:
    refuse(source, message)
    if message.name and message.name != model:
        raise LoadError(f"{source} says name: {message.name!r} in the folder of model '{model}'")
    steps = read_steps(source, message)
    if not steps and message.platform not in ("", platform):
        raise LoadError(f"{source} says platform: {message.platform!r}, this server runs '{platform}'")
    if message.backend not in ("", BACKEND):
        raise LoadError(f"{source} says backend: {message.backend!r}, this server runs '{BACKEND}'")
    if not 0 <= message.max_batch_size <= _MOST_ROWS:
        raise LoadError(f"{source} says max_batch_size: {message.max_batch_size}, expected 0 or more, to {_MOST_ROWS}")
    # Absent and 0 read alike. Triton takes 0 from a file that declares tensors as 'no batch axis', and so is it here.
    declares_tensors = bool(message.input or message.output)
    kind, instances = batching.instance_group(source, message.instance_group)
    given = {name: parameter.string_value for name, parameter in message.parameters.items()}
    return DeclaredConfig(
        source=source,
        max_batch_size=message.max_batch_size if message.max_batch_size or declares_tensors else None,
        version_policy=_version_policy(source, message.version_policy),
        inputs=_tensors(source, "input", message.input),
        outputs=_tensors(source, "output", message.output),
        labels=files.labels(source, message.output, folder),
        model_filename=files.plain_name(source, "default_model_filename", message.default_model_filename),
        instances=instances,
        kind=kind,
        batching=batching.dynamic_batching(source, message.dynamic_batching),
        session=parameters.session_settings(source, given, message.optimization.graph.level),
        warm_ups=warm_up.declared(source, message.model_warmup, folder),
        parameters=given,
        version_labels=parameters.version_labels(source, given),
        metric_tags=dict(message.metric_tags),
        response_cache=message.response_cache.enable,
        sequences=sequence_batching(source, message),
        steps=steps,
        message=message,
    )


def _version_policy(source: str, message: pb.ModelVersionPolicy) -> VersionPolicy:
    match message.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            if not message.specific.versions or min(message.specific.versions) < 1:
                raise LoadError(f"{source} has a version_policy specific, which expects versions from 1")
            return Specific(tuple(message.specific.versions))
        case "latest":
            return Latest(message.latest.num_versions or 1)
        case _:
            return Latest()


def _tensors(
    source: str, kind: str, tensors: Sequence[pb.ModelInput] | Sequence[pb.ModelOutput]
) -> tuple[DeclaredTensor, ...]:
    names = [tensor.name for tensor in tensors]
    for name in names:
        if not name:
            raise LoadError(f"{source} declares an {kind} without a name: expected one of the model's")
        if names.count(name) > 1:
            raise LoadError(f"{source} declares {kind} '{name}' {names.count(name)} times: expected once")
    return tuple(_tensor(source, kind, tensor) for tensor in tensors)


def _tensor(source: str, kind: str, tensor: pb.ModelInput | pb.ModelOutput) -> DeclaredTensor:
    what = f"{source} declares {kind} '{tensor.name}' with"
    dims = tuple(tensor.dims)
    reshape = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
    for field, sizes in (("dims", dims), ("reshape", reshape or ())):
        if any(size < 1 and size != -1 for size in sizes):
            raise LoadError(f"{what} {field} {list(sizes)}: expected sizes from 1, or -1 for any")
    named_only = not tensor.data_type and not dims and reshape is None
    config_type = "" if named_only else data_type(what, tensor.data_type)
    if reshape is not None and (
        max(dims.count(-1), reshape.count(-1)) > 1
        or dims.count(-1) != reshape.count(-1)
        or math.prod(dims) != math.prod(reshape)
    ):
        raise LoadError(
            f"{what} dims {list(dims)} and reshape {list(reshape)}: expected as many elements in both, "
            "and at most one -1 in each"
        )
    return DeclaredTensor(tensor.name, config_type, dims, reshape)


def _first_line(error: Exception) -> str:
    """What is wrong: parsers add the names of every field there is, and the system the server's folders."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
