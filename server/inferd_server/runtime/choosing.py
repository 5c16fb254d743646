"""Chooses session options by duels: one option is changed at a time, and stays changed where that pays.

Pure: what two settings cost is asked of `duel`, so that every choice here can be tested with made-up times. Two
sessions at once are all that it needs, whatever the number of candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from inferd_server.runtime.backend import GraphLevel, SessionSettings

SPINNING = "session.intra_op.allow_spinning"
STOP_SPINNING = "session.force_spinning_stop"
"""With it threads spin while a run goes on, and not after it, when others want the CPU."""

DISABLED_OPTIMIZERS = "optimization.disable_specified_optimizers"
NCHWC = "NchwcTransformer"
"""The optimizer that lays convolutions out in blocks of channels, as the CPU's vector registers want them."""

_GAIN = 0.97
"""A change must save 3 %: less is within what a busy machine makes of the same settings."""
_LOSS = 1.05
"""And must not cost more than 5 % at any size that was measured."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run takes, nanoseconds, medians."""

    wall_ns: float
    cpu_ns: float
    """Of all threads of the process."""

    @property
    def value(self) -> float:
        """Half of it is the caller's wait, half the CPU time taken from the threads that decode and answer."""
        return math.sqrt(max(self.wall_ns, 1.0) * max(self.cpu_ns, 1.0))


Duel = Callable[[SessionSettings, SessionSettings], Sequence[tuple[Cost, Cost]] | None]
"""The costs of both at each size; None where the second gives other answers, does not load, or time is over."""


def choose(default: SessionSettings, allowed_threads: int, duel: Duel) -> SessionSettings:
    """The settings that won, from `default` on. What an operator has set is never touched."""
    best = default
    for challengers in _dimensions(default, allowed_threads):
        for change in challengers:
            challenger = change(best)
            if challenger == best:
                continue
            costs = duel(best, challenger)
            if costs is not None and wins(costs):
                best = challenger
    return best


def wins(costs: Sequence[tuple[Cost, Cost]]) -> bool:
    """Whether the second of each pair is cheaper: by the geometric mean over the sizes, and nowhere much dearer."""
    ratios = [challenger.value / champion.value for champion, challenger in costs]
    return bool(ratios) and math.prod(ratios) ** (1 / len(ratios)) < _GAIN and max(ratios) <= _LOSS


def describe(default: SessionSettings, chosen: SessionSettings) -> str:
    """What differs from the default, in the names of config.pbtxt and of the runtime; `default` where nothing does."""
    words = []
    if chosen.intra_op_threads != default.intra_op_threads:
        words.append(f"intra_op_thread_count={chosen.intra_op_threads}")
    if chosen.memory_pattern != default.memory_pattern:
        words.append(f"enable_mem_pattern={int(chosen.memory_pattern)}")
    if chosen.memory_arena != default.memory_arena:
        words.append(f"enable_mem_arena={int(chosen.memory_arena)}")
    if chosen.graph_level is not default.graph_level:
        words.append(f"graph_level={chosen.graph_level.value}")
    words += [f"{key}={value}" for key, value in chosen.entries.items() if default.entries.get(key) != value]
    return " ".join(words) or "default"


Change = Callable[[SessionSettings], SessionSettings]


def _dimensions(default: SessionSettings, allowed_threads: int) -> list[list[Change]]:
    """The changes to try, those that decide most first."""
    explicit, dimensions = default.explicit, list[list[Change]]()
    if "graph_level" not in explicit and DISABLED_OPTIMIZERS not in default.entries:
        dimensions.append([_entries({DISABLED_OPTIMIZERS: NCHWC}), _level(GraphLevel.EXTENDED)])
    if "intra_op_threads" not in explicit:
        counts = {1 << power for power in range(allowed_threads.bit_length())} | {allowed_threads}
        dimensions.append([_threads(count) for count in sorted(counts) if count <= allowed_threads])
    if SPINNING not in default.entries:
        dimensions.append([_spinning])
    if "memory_pattern" not in explicit:
        dimensions.append([_pattern])
    if "memory_arena" not in explicit:
        dimensions.append([_arena])
    return dimensions


def _entries(entries: dict[str, str]) -> Change:
    return lambda settings: replace(settings, entries={**settings.entries, **entries})


def _level(level: GraphLevel) -> Change:
    def change(settings: SessionSettings) -> SessionSettings:
        # Without the optimizer that this level leaves out too, there is nothing left to compare.
        return settings if DISABLED_OPTIMIZERS in settings.entries else replace(settings, graph_level=level)

    return change


def _threads(count: int) -> Change:
    return lambda settings: replace(settings, intra_op_threads=count)


def _spinning(settings: SessionSettings) -> SessionSettings:
    if settings.intra_op_threads == 1:
        # Nobody is there to spin.
        return settings
    return replace(settings, entries={**settings.entries, SPINNING: "1", STOP_SPINNING: "1"})


def _pattern(settings: SessionSettings) -> SessionSettings:
    return replace(settings, memory_pattern=not settings.memory_pattern)


def _arena(settings: SessionSettings) -> SessionSettings:
    return replace(settings, memory_arena=not settings.memory_arena)
