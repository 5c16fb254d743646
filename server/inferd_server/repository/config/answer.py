"""The complete configuration of a version that runs, as RPC ModelConfig answers it."""

from __future__ import annotations

from collections.abc import Sequence

from inferd_protocol import model_config_pb2 as pb
from inferd_protocol.artefact import MODEL_FILE

from inferd_server.repository.config.declared import DeclaredConfig
from inferd_server.repository.config.effective import ModelConfig, kind_of
from inferd_server.repository.config.parameters import PROVIDER, TUNED
from inferd_server.repository.config.reading import BACKEND
from inferd_server.repository.version_policy import All, Latest, Specific
from inferd_server.runtime.backend import Signature, TensorSpec

_UINT32_MAX = 2**32 - 1
"""The field ends there, the server's flag does not."""


def configuration(
    name: str,
    platform: str,
    provider: str,
    signature: Signature,
    declared: DeclaredConfig,
    config: ModelConfig,
    tuned: str = "",
) -> pb.ModelConfig:
    """What is declared, completed by what follows from the model and the server.

    It is itself a config.pbtxt that this server takes. `signature` is as clients see it.
    """
    message = pb.ModelConfig()
    message.CopyFrom(declared.message)
    message.name, message.platform = name, platform
    message.version_policy.CopyFrom(_version_policy(declared))
    message.max_batch_size = config.max_batch_size
    inputs = {tensor.name: tensor for tensor in declared.message.input}
    outputs = {tensor.name: tensor for tensor in declared.message.output}
    del message.input[:], message.output[:]
    for spec in signature.inputs:
        message.input.add().CopyFrom(_input(spec, inputs.get(spec.name), batched=config.batched))
    for spec in signature.outputs:
        message.output.add().CopyFrom(_output(spec, outputs.get(spec.name), batched=config.batched))
    if declared.steps:
        # How files are run is said by the models of its steps.
        return message
    message.backend = BACKEND
    if config.batched and declared.sequences is None:
        message.dynamic_batching.max_queue_delay_microseconds = config.max_queue_delay_microseconds
        queue_size = min(config.max_queue_size, _UINT32_MAX)
        message.dynamic_batching.default_queue_policy.max_queue_size = queue_size
    del message.instance_group[:]
    message.instance_group.add(kind=kind_of(provider), count=config.instances)
    message.default_model_filename = declared.model_filename or MODEL_FILE
    message.parameters[PROVIDER].string_value = provider
    if tuned:
        message.parameters[TUNED].string_value = tuned
    elif TUNED in message.parameters:
        # Written down from another server's answer: here nothing was measured.
        del message.parameters[TUNED]
    return message


def _version_policy(declared: DeclaredConfig) -> pb.ModelVersionPolicy:
    match declared.version_policy:
        case Latest(count):
            return pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=count))
        case All():
            return pb.ModelVersionPolicy(all=pb.ModelVersionPolicy.All())
        case Specific(versions):
            return pb.ModelVersionPolicy(specific=pb.ModelVersionPolicy.Specific(versions=versions))


def _input(spec: TensorSpec, declared: pb.ModelInput | None, *, batched: bool) -> pb.ModelInput:
    tensor = pb.ModelInput(name=spec.name, data_type=spec.datatype.config, dims=_dims(spec, batched=batched))
    if declared is not None and declared.HasField("reshape"):
        tensor.reshape.CopyFrom(declared.reshape)
    return tensor


def _output(spec: TensorSpec, declared: pb.ModelOutput | None, *, batched: bool) -> pb.ModelOutput:
    tensor = pb.ModelOutput(name=spec.name, data_type=spec.datatype.config, dims=_dims(spec, batched=batched))
    if declared is not None:
        tensor.label_filename = declared.label_filename
        if declared.HasField("reshape"):
            tensor.reshape.CopyFrom(declared.reshape)
    return tensor


def _dims(spec: TensorSpec, *, batched: bool) -> Sequence[int]:
    return [dim if isinstance(dim, int) else -1 for dim in (spec.shape[1:] if batched else spec.shape)]
