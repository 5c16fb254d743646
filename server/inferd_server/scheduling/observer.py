"""Who is told of every request that a batcher ends, one by one. There is none unless an operator asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from inferd_server.errors import ServerError
from inferd_server.observability.statistics import Stamps
from inferd_server.scheduling.work import Work


class Observer(Protocol):
    """Told after the callers are, in the thread that ran the requests."""

    def answered(self, works: Sequence[Work], stamps: Stamps) -> None:
        """Requests that succeeded, one or more, and when the batch was formed, run and answered that they were in."""

    def failed(self, work: Work, error: ServerError | None, ns: int) -> None:
        """A request that failed `ns` nanoseconds after it had come; without an error because its caller has gone."""


class Several:
    """Tells several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def answered(self, works: Sequence[Work], stamps: Stamps) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.answered(works, stamps)

    def failed(self, work: Work, error: ServerError | None, ns: int) -> None:
        """Tells each."""
        for observer in self._observers:
            observer.failed(work, error, ns)


Observe: TypeAlias = Callable[[str, int], Observer]
"""Makes the observer of a model's version."""


def together(all_of: Sequence[Observe]) -> Observe | None:
    """Makes observers that tell one of each; None where there is nobody to tell."""
    if len(all_of) < 2:
        return all_of[0] if all_of else None
    return lambda name, version: Several([observe(name, version) for observe in all_of])
