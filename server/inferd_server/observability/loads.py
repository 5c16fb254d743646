"""Loads of model versions: how often, with what outcome, how long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

Loaded = TypeVar("Loaded")
Rest = ParamSpec("Rest")


class Loads(NamedTuple):
    """The loads of one version: how many ended well, how many did not, and nanoseconds in total."""

    succeeded: int = 0
    failed: int = 0
    ns: int = 0


class LoadCounts:
    """Counts loads by model and version. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads: dict[tuple[str, int], Loads] = {}

    def counted(
        self, load: Callable[Concatenate[str, int, Rest], Loaded]
    ) -> Callable[Concatenate[str, int, Rest], Loaded]:
        """`load`, which takes a model's name and version first, and is counted whenever it is called."""

        def wrapped(name: str, version: int, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Loaded:
            began_ns = time.monotonic_ns()
            succeeded = False
            try:
                loaded = load(name, version, *args, **kwargs)
                succeeded = True
            finally:
                self._count(name, version, succeeded, time.monotonic_ns() - began_ns)
            return loaded

        return wrapped

    def snapshot(self) -> Mapping[tuple[str, int], Loads]:
        """What was counted so far, by model and version."""
        with self._lock:
            return dict(sorted(self._loads.items()))

    def _count(self, name: str, version: int, succeeded: bool, ns: int) -> None:
        with self._lock:
            before = self._loads.get((name, version), Loads())
            self._loads[name, version] = Loads(
                before.succeeded + succeeded, before.failed + (not succeeded), before.ns + ns
            )
