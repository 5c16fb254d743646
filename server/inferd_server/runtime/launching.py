"""In which thread a session runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from inferd_server.errors import RuntimeFailure
from inferd_server.runtime.onnxruntime_model import UNLOADED

T = TypeVar("T")


class Launch(Protocol):
    """How a session is run: in the calling thread, or in one that is always the same."""

    def __call__(self, run: Callable[[], T]) -> T:
        """What `run` returns. Raises what it raises."""


def here(run: Callable[[], T]) -> T:
    """Launches in the calling thread."""
    return run()


class OneThread:
    """Launches one after the other in a thread of its own.

    ONNX Runtime keeps captured graphs by thread: one that another thread captured would be captured anew.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "running-graphs")

    def __call__(self, run: Callable[[], T]) -> T:
        """As `Launch`. Raises RuntimeFailure once it is closed."""
        try:
            running = self._thread.submit(run)
        except RuntimeError as error:
            raise RuntimeFailure(UNLOADED) from error
        return running.result()

    def close(self) -> None:
        """Ends the thread, after what it still has to run."""
        self._thread.shutdown(wait=False)
