"""A figure with its noise: what several rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds and their extremes, in the unit of what was measured."""

    median: float
    low: float
    high: float
    rounds: int

    def text(self, digits: int = 0) -> str:
        """`median (low-high)`, or the figure alone where there was one round."""
        if self.rounds == 1:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum. Raises ValueError where there is no value."""
    if not values:
        raise ValueError("expected at least one measurement, got none")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios round by round: what slows a whole round down falls out of them."""
    return [a / b for a, b in zip(above, below, strict=False) if b > 0]
