"""instance_group and dynamic_batching: how much runs at once, and how requests wait for it."""

from __future__ import annotations

from collections.abc import Sequence

from inferd_protocol import model_config_pb2 as pb

from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredBatching

_MOST_INSTANCES = 1024
"""Each is a thread."""

_LONGEST_DELAY_US = 3_600_000_000

_KINDS = ("KIND_AUTO", "KIND_CPU", "KIND_GPU")


def instance_group(source: str, groups: Sequence[pb.ModelInstanceGroup]) -> tuple[str, int]:
    """The kind of device, and how many instances run on it, 0 where that is left to the server.

    Raises LoadError where there are several groups, or values that make no sense.
    """
    if not groups:
        return _KINDS[0], 0
    if len(groups) > 1:
        raise LoadError(f"{source} has {len(groups)} of instance_group: expected one, as a model runs on one device")
    group = groups[0]
    known = pb.ModelInstanceGroup.Kind.values()
    kind = pb.ModelInstanceGroup.Kind.Name(group.kind) if group.kind in known else str(group.kind)
    if kind not in _KINDS:
        raise LoadError(f"{source} says instance_group kind: {kind}, expected one of {', '.join(_KINDS)}")
    if not 0 <= group.count <= _MOST_INSTANCES:
        raise LoadError(f"{source} says instance_group count: {group.count}, expected from 1 to {_MOST_INSTANCES}")
    return kind, group.count


def dynamic_batching(source: str, batching: pb.ModelDynamicBatching) -> DeclaredBatching:
    """What is said of dynamic batching. How it goes with the largest batch is for `resolve` to say.

    Raises LoadError where values make no sense.
    """
    sizes = tuple(batching.preferred_batch_size)
    if sizes and min(sizes) < 1:
        raise LoadError(f"{source} says preferred_batch_size: {list(sizes)}, expected sizes from 1")
    delay = batching.max_queue_delay_microseconds
    if delay > _LONGEST_DELAY_US:
        raise LoadError(
            f"{source} says max_queue_delay_microseconds: {delay}, expected at most {_LONGEST_DELAY_US}, an hour"
        )
    policy = batching.default_queue_policy
    return DeclaredBatching(
        preferred_batch_sizes=sizes,
        max_queue_delay_microseconds=delay,
        preserve_ordering=batching.preserve_ordering,
        max_queue_size=policy.max_queue_size,
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
    )
