"""Blocking work beside the event loop that must not keep the process from ending.

asyncio's own executor is joined when the loop ends, so a call that hangs in it would outlive any time-out.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


def run_in_background(work: Callable[[], None], name: str) -> asyncio.Future[None]:
    """Starts `work` in a daemon thread; the future of the running loop ends as it ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def finish(error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: Exception | None = None
        try:
            work()
        except Exception as raised:  # noqa: BLE001 - it is raised again where the future is awaited
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
