"""How a model is served: decided by its file and the server's settings, refined by a config.pbtxt where there is one.

Every field of a config.pbtxt is honoured or refused by name; none is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf import json_format, text_format
from inferd_protocol import model_config_pb2
from inferd_protocol.datatypes import BY_CONFIG

from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.repository import ensemble_config
from inferd_server.repository.ensemble_config import Step
from inferd_server.repository.version_policy import All, Latest, Specific, VersionPolicy
from inferd_server.runtime.backend import Signature, TensorSpec

_HONOURED = {
    "name",
    "platform",
    "backend",
    "max_batch_size",
    "input",
    "output",
    "version_policy",
    "ensemble_scheduling",
}
_TENSOR_HONOURED = {"name", "data_type", "dims"}


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """An input or output as a config.pbtxt declares it: `dims` without the batch axis, -1 for any size."""

    name: str
    config_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeclaredConfig:
    """What a config.pbtxt says. `max_batch_size` is None where it says nothing of it."""

    max_batch_size: int | None = None
    version_policy: VersionPolicy = field(default_factory=Latest)
    inputs: tuple[DeclaredTensor, ...] = ()
    outputs: tuple[DeclaredTensor, ...] = ()
    steps: tuple[Step, ...] = ()
    """Those of an ensemble; none of a model that has a file."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How one version is served. `max_batch_size` is rows a run, 0 where the model has no batch axis."""

    max_batch_size: int
    max_request_rows: int
    max_queue_size: int
    max_queue_bytes: int
    max_queue_delay_microseconds: int
    instances: int

    @property
    def batched(self) -> bool:
        """Whether axis 0 of every tensor is the batch axis."""
        return self.max_batch_size > 0


def read(path: Path | None, model: str, platform: str) -> DeclaredConfig:
    """Reads a config.pbtxt; without one nothing is declared.

    Raises LoadError where it cannot be parsed, is of another model or platform, or sets a field that is not honoured.
    """
    if path is None:
        return DeclaredConfig()
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(path.read_text(), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise LoadError(f"{path.name} cannot be read: {error}") from error
    return _checked(path.name, message, model, platform)


def read_json(text: str, model: str, platform: str) -> DeclaredConfig:
    """Reads the same from JSON, as a request to load brings it. Raises as `read` does."""
    message = model_config_pb2.ModelConfig()
    try:
        json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise LoadError(f"parameter 'config' cannot be read: {error}") from error
    return _checked("parameter 'config'", message, model, platform)


def _checked(source: str, message: model_config_pb2.ModelConfig, model: str, platform: str) -> DeclaredConfig:
    _refuse_others(source, message, _HONOURED)
    for tensors in (message.input, message.output):
        for tensor in tensors:
            _refuse_others(f"{source}, '{tensor.name}'", tensor, _TENSOR_HONOURED)
    if message.name and message.name != model:
        raise LoadError(f"{source} says name: '{message.name}' in the folder of model '{model}'")
    steps = ensemble_config.read_steps(source, message)
    if not steps and message.platform not in ("", platform):
        raise LoadError(f"{source} says platform: '{message.platform}', this server runs '{platform}'")
    if message.backend not in ("", "onnxruntime"):
        raise LoadError(f"{source} says backend: '{message.backend}', this server runs 'onnxruntime'")
    if message.max_batch_size < 0:
        raise LoadError(f"{source} says max_batch_size: {message.max_batch_size}, expected 0 or more")
    # Absent and 0 read alike. Triton takes 0 from a file that declares tensors as 'no batch axis', and so is it here.
    declares_tensors = bool(message.input or message.output)
    return DeclaredConfig(
        max_batch_size=message.max_batch_size if message.max_batch_size or declares_tensors else None,
        version_policy=_version_policy(source, message.version_policy),
        inputs=tuple(_declared(tensor) for tensor in message.input),
        outputs=tuple(_declared(tensor) for tensor in message.output),
        steps=steps,
    )


def resolve(signature: Signature, batchable: bool, declared: DeclaredConfig, server: ServerConfig) -> ModelConfig:
    """How a version is served. `batchable`: axis 0 of every tensor varies, and rows were seen to be independent.

    Raises LoadError where what is declared contradicts the model.
    """
    max_batch_size = declared.max_batch_size
    if max_batch_size is None:
        max_batch_size = server.max_batch_size if batchable else 0
    if max_batch_size and not batchable:
        raise LoadError(f"config.pbtxt says max_batch_size: {max_batch_size}, but {why_not_batchable(signature)}")
    for kind, specs, tensors in (
        ("input", signature.inputs, declared.inputs),
        ("output", signature.outputs, declared.outputs),
    ):
        _compare(kind, specs, tensors, batched=max_batch_size > 0)
    return served(max_batch_size, server)


def served(max_batch_size: int, server: ServerConfig) -> ModelConfig:
    """How a version is served with this many rows a run, and with the server's settings for all else."""
    return ModelConfig(
        max_batch_size=max_batch_size,
        max_request_rows=server.max_request_rows,
        max_queue_size=server.max_queue_size,
        max_queue_bytes=server.max_queue_bytes,
        max_queue_delay_microseconds=server.max_queue_delay_microseconds,
        instances=server.instances,
    )


def has_batch_axis(signature: Signature) -> bool:
    """Whether axis 0 of every input and output may be of any size, and of the same: the shape of a batch axis."""
    specs = (*signature.inputs, *signature.outputs)
    if not signature.inputs or not all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs):
        return False
    # Converters do not carry the name through to every output, but inputs of different names are different axes.
    return len({spec.shape[0] for spec in signature.inputs}) == 1


def why_not_batchable(signature: Signature) -> str:
    """Why the model cannot be batched, and what to do."""
    for spec in (*signature.inputs, *signature.outputs):
        if not spec.shape:
            return f"'{spec.name}' is a scalar: it has no batch axis"
        if isinstance(spec.shape[0], int):
            return f"axis 0 of '{spec.name}' is fixed at {spec.shape[0]}: export with a dynamic batch"
    names = {spec.shape[0] for spec in signature.inputs}
    if len(names) > 1:
        return f"axis 0 of the inputs has different names {sorted(map(str, names))}: export with one batch axis"
    return "its rows are not independent of each other: axis 0 is no batch axis"


def _refuse_others(
    where: str,
    message: model_config_pb2.ModelConfig | model_config_pb2.ModelInput | model_config_pb2.ModelOutput,
    honoured: set[str],
) -> None:
    refused = [descriptor.name for descriptor, _ in message.ListFields() if descriptor.name not in honoured]
    if refused:
        raise LoadError(f"{where} sets {', '.join(refused)}, which this server does not have: take it out")


def _version_policy(where: str, message: model_config_pb2.ModelVersionPolicy) -> VersionPolicy:
    match message.WhichOneof("policy_choice"):
        case "all":
            return All()
        case "specific":
            if not message.specific.versions or min(message.specific.versions) < 1:
                raise LoadError(f"{where} has a version_policy specific, which expects versions from 1")
            return Specific(tuple(message.specific.versions))
        case "latest":
            return Latest(message.latest.num_versions or 1)
        case _:
            return Latest()


def _declared(tensor: model_config_pb2.ModelInput | model_config_pb2.ModelOutput) -> DeclaredTensor:
    return DeclaredTensor(tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(tensor.dims))


def _compare(kind: str, specs: Sequence[TensorSpec], declared: Sequence[DeclaredTensor], *, batched: bool) -> None:
    by_name = {spec.name: spec for spec in specs}
    for tensor in declared:
        spec = by_name.get(tensor.name)
        if spec is None:
            raise LoadError(f"config.pbtxt declares {kind} '{tensor.name}', the model has {sorted(by_name)}")
        datatype = BY_CONFIG.get(tensor.config_type)
        if datatype is not spec.datatype:
            raise LoadError(
                f"config.pbtxt declares {kind} '{tensor.name}' as {tensor.config_type}, "
                f"the model has {spec.datatype.config}"
            )
        dims = spec.shape[1:] if batched else spec.shape
        agree = len(dims) == len(tensor.dims) and all(
            not isinstance(dim, int) or asked in (-1, dim) for dim, asked in zip(dims, tensor.dims, strict=True)
        )
        if not agree:
            model_dims = [dim if isinstance(dim, int) else -1 for dim in dims]
            without = " (without the batch axis)" if batched else ""
            raise LoadError(
                f"config.pbtxt declares {kind} '{tensor.name}' with dims {list(tensor.dims)}, "
                f"the model has {model_dims}{without}"
            )
