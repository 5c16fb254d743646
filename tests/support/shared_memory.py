"""Shared memory objects for tests, gone when the test is."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from inferd_server.shared_memory import FOLDER


@contextlib.contextmanager
def shared_object(nbytes: int, data: bytes = b"") -> Iterator[Path]:
    """The file of an object of `nbytes` bytes, `data` first. Its name is the key."""
    path = FOLDER / f"inferd-test-{os.getpid()}-{uuid.uuid4().hex}"
    path.write_bytes(data.ljust(nbytes, b"\0"))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
