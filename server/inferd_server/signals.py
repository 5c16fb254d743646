"""Counts the signals that ask a process to stop: the first asks, the second insists."""

from __future__ import annotations

_SAME_SECONDS = 0.25
"""`timeout` and some supervisors signal a process and then its whole group: the same signal twice, in an instant."""


class SignalCounter:
    """How often somebody asked."""

    def __init__(self) -> None:
        self._count = 0
        self._last: tuple[int, float] | None = None

    def count(self, number: int, now: float) -> int:
        """The times asked, with this one; `now` in seconds. A signal that repeats at once is not counted again."""
        if self._last is None or number != self._last[0] or now - self._last[1] >= _SAME_SECONDS:
            self._count += 1
        self._last = (number, now)
        return self._count
