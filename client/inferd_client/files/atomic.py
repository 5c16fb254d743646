"""A file that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from inferd_protocol.command import CommandError

from inferd_client.errors import InferdError


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` when the block ends, and is removed when it ends in an exception.

    It lies beside `path`, where renaming is one step. Its bytes are on the disk before it gets the name.
    Raises CommandError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise CommandError(f"cannot write to {path.parent}: {error.strerror}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A full disk, say. A deadline of the client's is an OSError, too, and says for itself what is wrong.
        if isinstance(error, OSError) and not isinstance(error, InferdError):
            raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
