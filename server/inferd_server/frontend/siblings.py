"""The figures of all workers, from any of them: each answers the others on a socket of its own.

The sockets lie in a folder that only the server's user may enter.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Listener
from pathlib import Path

from inferd_server.frontend.figures import Figures

_LOG = logging.getLogger(__name__)

_ANSWER_SECONDS = 2.0


class Siblings:
    """Worker `number` of `count`, whose sockets are in `folder`; `own` are its figures. Answers the others at once."""

    def __init__(self, folder: Path, number: int, count: int, own: Callable[[], Figures]) -> None:
        self._folder = folder
        self._number = number
        self._count = count
        self._own = own
        path = self._path(number)
        # The socket of the worker that died and whose place this one takes.
        path.unlink(missing_ok=True)
        self._listener = Listener(str(path), "AF_UNIX", backlog=64)
        threading.Thread(target=self._answer, name="siblings", daemon=True).start()

    def figures(self) -> Mapping[int, Figures]:
        """By the number of the worker; without those that do not answer, because they have died or are starting."""
        found: dict[int, Figures] = {}
        for number in range(self._count):
            figures = self._own() if number == self._number else self._ask(number)
            if figures is not None:
                found[number] = figures
        return found

    def _ask(self, number: int) -> Figures | None:
        try:
            with Client(str(self._path(number)), "AF_UNIX") as connection:
                if connection.poll(_ANSWER_SECONDS):
                    figures: Figures = connection.recv()
                    return figures
        except (OSError, EOFError) as error:
            _LOG.debug("worker %d does not answer: %s", number, error)
        return None

    def _answer(self) -> None:
        while True:
            try:
                with self._listener.accept() as connection:
                    connection.send(self._own())
            except OSError as error:
                # One that asked and did not wait for the answer.
                _LOG.debug("a worker has gone: %s", error)

    def _path(self, number: int) -> Path:
        return self._folder / f"worker-{number}.sock"
