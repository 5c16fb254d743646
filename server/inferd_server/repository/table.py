"""The table of models that requests are looked up in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from inferd_server.repository import lifecycle
from inferd_server.repository.lifecycle import ModelEntry
from inferd_server.repository.servable import Servable


class ModelTable:
    """Whole entries, written one at a time; lookups, from any thread and without a lock, see one before or after."""

    def __init__(self) -> None:
        self._models: Mapping[str, ModelEntry] = {}
        self._writing = threading.Lock()
        self.generation = 0
        """Grows with every change of what `find` answers."""

    @property
    def models(self) -> Mapping[str, ModelEntry]:
        """Every model, by name."""
        return self._models

    def find(self, name: str, version: str) -> Servable:
        """The version to call; raises as `lifecycle.find` does."""
        return lifecycle.find(self._models, name, version)

    def update(self, name: str, change: Callable[[ModelEntry], ModelEntry | None]) -> ModelEntry:
        """Replaces an entry by what `change` makes of it, an empty one where there was none; None removes it.

        Returns the entry before. What `change` raises leaves the table as it was.
        """
        with self._writing:
            before = self._models.get(name, ModelEntry())
            after = change(before)
            models = {key: entry for key, entry in self._models.items() if key != name}
            if after is not None:
                models[name] = after
            self._models = models
            # After the entry: whoever sees the new generation sees the entry too.
            self.generation += 1
        return before
