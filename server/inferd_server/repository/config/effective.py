"""How one version is served: its file, its config.pbtxt and the server's settings, brought together."""

from __future__ import annotations

from dataclasses import dataclass

from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredConfig
from inferd_server.repository.config.parameters import PROVIDER
from inferd_server.repository.config.tensors import client_signature, why_not_batchable
from inferd_server.runtime.backend import CPU_PROVIDER, Signature


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How one version is served. `max_batch_size` is rows a run, 0 where the model has no batch axis."""

    max_batch_size: int
    max_request_rows: int
    max_queue_size: int
    max_queue_bytes: int
    max_queue_delay_microseconds: int
    instances: int
    preferred_rows: int = 0
    """A batch of so many rows waits no longer for more; 0 where only a full one does not."""
    default_timeout_microseconds: int = 0
    """Longest wait in the queue of every request; 0 where only those have a limit that ask for it."""
    allow_timeout_override: bool = False
    """Whether requests may ask for a shorter wait than the default."""

    @property
    def batched(self) -> bool:
        """Whether axis 0 of every tensor is the batch axis."""
        return self.max_batch_size > 0

    def queue_timeout_us(self, asked: int) -> int:
        """Longest wait in the queue of a request that asks for `asked`, microseconds; 0 for no limit in both."""
        default = self.default_timeout_microseconds
        if not default:
            return asked
        return min(default, asked) if asked and self.allow_timeout_override else default


def resolve(signature: Signature, batchable: bool, declared: DeclaredConfig, server: ServerConfig) -> ModelConfig:
    """How a version is served. `batchable`: axis 0 of every tensor varies, and rows were seen to be independent.

    Raises LoadError where what is declared contradicts the model.
    """
    max_batch_size = declared.max_batch_size
    if max_batch_size is None:
        max_batch_size = server.max_batch_size if batchable else 0
    if max_batch_size and not batchable:
        raise LoadError(f"{declared.source} says max_batch_size: {max_batch_size}, but {why_not_batchable(signature)}")
    clients = client_signature(signature, declared)
    batching = declared.batching
    preferred = batching.preferred_batch_sizes
    if not max_batch_size and (preferred or batching.max_queue_delay_microseconds):
        field = "preferred_batch_size" if preferred else "max_queue_delay_microseconds"
        raise LoadError(f"{declared.source} sets dynamic_batching.{field}, but the model is not batched: take it out")
    if preferred and max(preferred) > max_batch_size:
        raise LoadError(
            f"{declared.source} says preferred_batch_size: {list(preferred)}, expected at most {max_batch_size}, "
            "the largest batch"
        )
    instances = declared.instances or server.instances
    if batching.preserve_ordering:
        _check_order(clients, instances, declared.source, batched=max_batch_size > 0)
    return ModelConfig(
        max_batch_size=max_batch_size,
        max_request_rows=server.max_request_rows,
        max_queue_size=batching.max_queue_size or server.max_queue_size,
        max_queue_bytes=server.max_queue_bytes,
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds or server.max_queue_delay_microseconds,
        instances=instances,
        preferred_rows=min(preferred, default=0),
        default_timeout_microseconds=batching.default_timeout_microseconds,
        allow_timeout_override=batching.allow_timeout_override,
    )


def resolve_ensemble(declared: DeclaredConfig, server: ServerConfig) -> ModelConfig:
    """How an ensemble is served: requests of up to `max_batch_size` rows or more, which its steps' models batch."""
    return ModelConfig(
        max_batch_size=declared.max_batch_size or 0,
        max_request_rows=server.max_request_rows,
        max_queue_size=server.max_queue_size,
        max_queue_bytes=server.max_queue_bytes,
        max_queue_delay_microseconds=0,
        instances=1,
    )


def check_provider(declared: DeclaredConfig, provider: str) -> None:
    """Raises LoadError where another device or execution provider is declared than the one that runs the model."""
    kind = kind_of(provider)
    if declared.kind not in ("KIND_AUTO", kind):
        raise LoadError(
            f"{declared.source} says instance_group kind: {declared.kind}, but this server runs models on {provider}, "
            f"which is {kind}: see --device"
        )
    asked = declared.parameters.get(PROVIDER, provider)
    if asked != provider:
        raise LoadError(
            f"{declared.source} says parameters '{PROVIDER}': '{asked}', but this server runs models on {provider}"
        )


def kind_of(provider: str) -> str:
    """The kind of an instance group whose instances run on an execution provider."""
    return "KIND_CPU" if provider == CPU_PROVIDER else "KIND_GPU"


def _check_order(signature: Signature, instances: int, source: str, *, batched: bool) -> None:
    """Raises LoadError where a later request may be answered before an earlier one."""
    sets = f"{source} sets dynamic_batching.preserve_ordering, which"
    if instances > 1:
        raise LoadError(f"{sets} holds with one instance, and {instances} would run: take it out, or set count: 1")
    for spec in signature.inputs:
        row = spec.shape[1:] if batched else spec.shape
        if not all(isinstance(dim, int) for dim in row):
            raise LoadError(
                f"{sets} holds for requests of one shape, and input '{spec.name}' may have several: take it out, or "
                "declare its dims"
            )
