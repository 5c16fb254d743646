"""Which versions of a model are served: Triton's three policies, as pure functions of what lies in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latest:
    """The `count` highest versions. One is the default of Triton, and of this server."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class All:
    """Every version."""


@dataclass(frozen=True, slots=True)
class Specific:
    """These versions, of which those that are missing fail to load."""

    versions: tuple[int, ...]


VersionPolicy = Latest | All | Specific


def served(available: Sequence[int], policy: VersionPolicy) -> tuple[int, ...]:
    """The versions to serve, in rising order, of those `available`."""
    match policy:
        case Latest(count):
            return tuple(sorted(available)[-count:])
        case All():
            return tuple(sorted(available))
        case Specific(versions):
            return tuple(sorted(set(versions)))
