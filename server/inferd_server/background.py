"""Blocking work beside the event loop that must not keep the process from ending.

asyncio's own executor is joined when the loop ends, so a call that hangs in it would outlive any time-out.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def run_in_background(work: Callable[[], Result], name: str) -> asyncio.Future[Result]:
    """Starts `work` in a daemon thread; the future of the running loop ends as it ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def succeed(result: Result) -> None:
        if not done.done():
            done.set_result(result)

    def fail(error: Exception) -> None:
        if not done.done():
            done.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is raised again where the future is awaited
            if not loop.is_closed():
                loop.call_soon_threadsafe(fail, error)
        else:
            if not loop.is_closed():
                loop.call_soon_threadsafe(succeed, result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done
