"""Versions that are not called any more: they finish what they have accepted, and give their memory back."""

from __future__ import annotations

import logging
import threading
import time

from inferd_server.repository.servable import Servable
from inferd_server.runtime.resources import give_memory_back

_LOG = logging.getLogger(__name__)


class Retirement:
    """Closes servables in threads of their own, so that no load waits for a run that lasts."""

    def __init__(self, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._lock = threading.Lock()
        self._running: set[threading.Thread] = set()

    def retire(self, servable: Servable) -> threading.Thread:
        """Begins to close a servable, which must not be found any more. The thread ends when its memory is free."""
        thread = threading.Thread(
            target=self._close, args=(servable,), name=f"retire-{servable.name}/{servable.version}", daemon=True
        )
        with self._lock:
            self._running.add(thread)
        thread.start()
        return thread

    def wait(self, ends: float) -> bool:
        """Waits for what is being closed, until `ends` on `time.monotonic`'s clock. False where a run goes on."""
        with self._lock:
            threads = list(self._running)
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _close(self, servable: Servable) -> None:
        try:
            if not servable.close(self._drain_seconds):
                _LOG.warning(
                    "model '%s' version %d was freed though a run had not ended after %g s",
                    servable.name,
                    servable.version,
                    self._drain_seconds,
                )
            give_memory_back()
        finally:
            with self._lock:
                self._running.discard(threading.current_thread())
