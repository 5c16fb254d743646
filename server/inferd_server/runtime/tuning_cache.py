"""What tuning found, a file of JSON for each key, so that the next start need not measure.

The cache is a convenience: what cannot be read, or is not what this version writes, is measured again, with a warning;
what cannot be written costs the next start its measurement and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from inferd_server.runtime.backend import GraphLevel, SessionSettings
from inferd_server.runtime.choosing import DISABLED_OPTIMIZERS, NCHWC, SPINNING, STOP_SPINNING

_LOG = logging.getLogger(__name__)

_FORMAT = 1
_MOST_BYTES = 64 * 1024
_MOST_THREADS = 1024

Key = Mapping[str, str | int]

_ALLOWED_ENTRIES = {DISABLED_OPTIMIZERS: NCHWC, SPINNING: "1", STOP_SPINNING: "1"}
"""What tuning chooses among: a file from elsewhere is not to set anything else."""


class TuningCache:
    """A folder of results."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "tuning"

    def path(self, key: Key) -> Path:
        """The file of a key."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest}.json"

    def find(self, key: Key, default: SessionSettings) -> SessionSettings | None:
        """What was chosen for the key, put over `default`; None where nothing usable is there."""
        path = self.path(key)
        try:
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
            return _settings(json.loads(content), key, default)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            _LOG.warning("%s is no result of tuning and is measured again: %s", path, error)
            return None

    def keep(self, key: Key, chosen: SessionSettings) -> None:
        """Writes what was chosen; a reader finds all of it or none."""
        content = {
            "format": _FORMAT,
            "key": dict(key),
            "intra_op_threads": chosen.intra_op_threads,
            "memory_arena": chosen.memory_arena,
            "memory_pattern": chosen.memory_pattern,
            "graph_level": chosen.graph_level.value,
            "entries": {name: value for name, value in chosen.entries.items() if name in _ALLOWED_ENTRIES},
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=".part")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(content, file, indent=1)
                os.replace(temporary, self.path(key))
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            _LOG.warning("what tuning found is not kept, and the next start measures again: %s", error)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody else who uses this folder measures: two measurements at once would each see the other's load.

        A folder that cannot be written is used without.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("w")
        except OSError:
            # `keep` will say so.
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _settings(content: Any, key: Key, default: SessionSettings) -> SessionSettings:
    """Raises ValueError where the content is not what `keep` writes for the key."""
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("key") != dict(key):
        raise ValueError("it is of another format or another key")
    threads, entries = content.get("intra_op_threads"), content.get("entries")
    arena, pattern = content.get("memory_arena"), content.get("memory_pattern")
    if type(threads) is not int or not 0 <= threads <= _MOST_THREADS:
        raise ValueError(f"intra_op_threads is expected to be a number up to {_MOST_THREADS}, got {threads!r}")
    if type(arena) is not bool or type(pattern) is not bool:
        raise ValueError("memory_arena and memory_pattern are expected to be true or false")
    if not isinstance(entries, dict) or any(_ALLOWED_ENTRIES.get(name) != value for name, value in entries.items()):
        raise ValueError(f"entries are expected to be among {_ALLOWED_ENTRIES}, got {entries!r}")
    return replace(
        default,
        intra_op_threads=threads,
        memory_arena=arena,
        memory_pattern=pattern,
        graph_level=GraphLevel(content.get("graph_level")),
        entries={**default.entries, **entries},
    )
