"""Which models run which others: pure functions over names and the models that each one's steps name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

StepsOf: TypeAlias = Callable[[str], Iterable[str]]
"""The models that a model's steps name: none for one that is no ensemble."""


def load_order(names: Iterable[str], steps_of: StepsOf) -> Sequence[str]:
    """The names and all that they depend on, each once, after what it depends on.

    Members of a cycle, which have no such order, are there too: holding them against each other finds it.
    """
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        for step in steps_of(name):
            visit(step)
        order.append(name)

    for name in names:
        visit(name)
    return order


def cycle_through(name: str, steps_of: StepsOf) -> Sequence[str]:
    """A way from a model over its steps back to itself, with it at both ends; empty where there is none."""
    seen: set[str] = set()

    def way_back(here: str) -> list[str]:
        for step in steps_of(here):
            if step == name:
                return [here, step]
            if step not in seen:
                seen.add(step)
                if way := way_back(step):
                    return [here, *way]
        return []

    return way_back(name)


def unused_without(name: str, steps: Mapping[str, Collection[str]], kept: Collection[str]) -> Sequence[str]:
    """What only `name` uses, itself or through ensembles that only it uses; each before what it uses in turn.

    `steps` holds the loaded models, with the models that each one's steps name; those `kept` are wanted for themselves.
    """
    gone = [name]
    for user in gone:
        for step in steps.get(user, ()):
            used = any(step in others for other, others in steps.items() if other not in gone)
            if step in steps and step not in kept and step not in gone and not used:
                gone.append(step)
    return gone[1:]
