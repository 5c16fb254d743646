"""Progress bars on stderr; silent where that is not a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Protocol

from tqdm import tqdm


class Progress(Protocol):
    """Hears how a training goes on."""

    def start_epoch(self, epoch: int, epochs: int, batches: int) -> None:
        """Epoch `epoch` of `epochs`, counted from 1, begins; it has `batches` steps."""

    def step(self, loss: float) -> None:
        """One batch is done; `loss` is the epoch's mean so far."""

    def end_epoch(self, summary: str) -> None:
        """The epoch is done; `summary` has its figures."""


class Silent:
    """Says nothing."""

    def start_epoch(self, epoch: int, epochs: int, batches: int) -> None:
        """Nothing."""

    def step(self, loss: float) -> None:
        """Nothing."""

    def end_epoch(self, summary: str) -> None:
        """Nothing."""


class Bars:
    """One bar an epoch, and one line of figures, given to `tell`, when it ends."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._bar: tqdm[NoReturn] | None = None
        self._label = ""

    def start_epoch(self, epoch: int, epochs: int, batches: int) -> None:
        """Opens the epoch's bar."""
        self._label = f"epoch {epoch}/{epochs}"
        # disable=None: no bar where stderr is not a terminal.
        self._bar = tqdm(total=batches, desc=self._label, unit="batch", leave=False, disable=None)

    def step(self, loss: float) -> None:
        """Moves the bar on by one."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self._bar.update()

    def end_epoch(self, summary: str) -> None:
        """Replaces the bar by a line of figures."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._tell(f"{self._label}  {summary}")
