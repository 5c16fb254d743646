"""What is wrong with a repository, said once and not at every look at it."""

from __future__ import annotations

import logging

_LOG = logging.getLogger(__name__)


class Complaints:
    """Logs why a model, or the repository for an empty name, cannot be read: once, and again when it changes."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def say(self, name: str, failure: str) -> None:
        """Why it cannot; empty where it can."""
        if failure and self._said.get(name) != failure:
            _LOG.error("%s: %s", f"model '{name}' is unavailable" if name else "the repository is away", failure)
        self._said[name] = failure
