"""When a call is tried again, and how long to wait before: values and arithmetic, no clock and no sleep of their own.

From the inside out, a call is an attempt whose failure becomes a typed error, within the time that is left, within
the retries, within the deadline. A timeout is a duration; a deadline is a moment. The deadline is set once, when the
call begins, and everything the call does has to fit: retries, waits between them, fetching metadata, the parts of a
split batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inferd_client.errors import ControlOff, Draining, InferdError, NotReady, Overloaded, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Which failures are tried again, and how long to wait: exponential back-off with full jitter.

    The wait before retry n (from 0) is drawn evenly from 0 to min(maximum, initial * multiplier ** n) seconds: clients
    that failed together do not come back together.

    Tried again: no connection (and an UNAVAILABLE without a reason, as Triton answers it), and a server that is
    draining. With `not_ready` also a model that is loading, with `overloaded` also a full queue: off by default,
    because trying again is what keeps an overloaded server overloaded. A failure inside the server never is.
    """

    attempts: int = 5
    """Attempts in all; 1 is no retry."""
    initial: float = 0.1
    maximum: float = 2.0
    multiplier: float = 2.0
    overloaded: bool = False
    not_ready: bool = False

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.initial < 0 or self.maximum < self.initial or self.multiplier < 1:
            raise ValueError(
                f"{self} needs at least one attempt, 0 <= initial <= maximum, and a multiplier of 1 or more"
            )

    def covers(self, error: InferdError) -> bool:
        """Whether a call that failed with `error` may be better next time."""
        match error:
            case Overloaded():
                return self.overloaded
            case NotReady():
                return self.not_ready
            case Draining():
                return True
            case ControlOff():
                return False
            case _:
                return isinstance(error, Unavailable)

    def delay(self, retry: int, random: Callable[[], float]) -> float:
        """Seconds to wait before retry number `retry`, counted from 0. `random` draws evenly from [0, 1)."""
        # The exponent is capped: far retries are at `maximum` anyway, and the power of a float overflows.
        return min(self.maximum, self.initial * self.multiplier ** min(retry, 64)) * random()


NO_RETRY = Retry(attempts=1)
"""Every failure is the caller's to handle."""
