"""Extents of axes as products, so that shapes can be reckoned with while the batch is free: 4*batch, or just 32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

Named = int | str | None
"""An extent in a Shape: a number, a name, or nothing known."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A whole number times free extents, which are known by name only; each may occur several times."""

    factor: int
    free: tuple[str, ...] = ()

    @property
    def named(self) -> int | str:
        """As it stands in a Shape."""
        if not self.free:
            return self.factor
        return "*".join([*([str(self.factor)] if self.factor != 1 else []), *self.free])

    def __mul__(self, other: Extent) -> Extent:
        return Extent(self.factor * other.factor, tuple(sorted(self.free + other.free)))

    def divided(self, other: Extent) -> Extent | None:
        """Self / other, where that is such a product again."""
        if not other.factor or self.factor % other.factor:
            return None
        left = Counter(self.free)
        left.subtract(other.free)
        if any(count < 0 for count in left.values()):
            return None
        return Extent(self.factor // other.factor, tuple(sorted(left.elements())))


def extent(named: Named) -> Extent | None:
    """What an entry of a Shape says; None where it says nothing."""
    if isinstance(named, int):
        return Extent(named)
    if not named:
        return None
    parts = named.split("*")
    # A name of somebody else's, in which * means whatever it means to them, is a name like any other.
    if len(parts) > 1 and not all(part.isidentifier() or part.isdecimal() for part in parts):
        return Extent(1, (named,))
    numbers = [int(part) for part in parts if part.isdecimal()]
    return Extent(prod(numbers), tuple(sorted(part for part in parts if not part.isdecimal())))


def product(extents: Iterable[Extent | None]) -> Extent | None:
    """All of them multiplied; None where one is not known."""
    total = Extent(1)
    for one in extents:
        if one is None:
            return None
        total = total * one
    return total
