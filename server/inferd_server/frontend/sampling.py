"""Which of the requests without a trace of their caller's begin one."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """Triton's trace settings: `on` for requests of any kind, the rest for those without a caller's trace."""

    on: bool
    rate: int
    """Of so many requests one is traced; 0 for none of them."""
    count: int = -1
    """How many more; -1 for any number."""


class Sampler:
    """Counts the requests. From any thread."""

    def __init__(self, sampling: Sampling) -> None:
        self.on = sampling.on
        self._rate = sampling.rate
        self._left = sampling.count
        self._seen = 0
        self._lock = threading.Lock()

    def takes(self) -> bool:
        """Whether the next request is one to be traced."""
        if not self._rate:
            return False
        with self._lock:
            self._seen += 1
            if self._seen % self._rate or not self._left:
                return False
            if self._left > 0:
                self._left -= 1
            return True
