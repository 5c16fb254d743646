"""Folders that appear whole or not at all, and files known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document for people to read. Raises ValueError for a number that JSON lacks (NaN, infinity)."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in `parent`, which is created; whatever is still there at the end is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".inferd-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync(folder: Path) -> None:
    """Makes a folder's files, the folders in it, and the folder itself durable."""
    for path in [*folder.rglob("*"), folder]:
        sync_one(path)


def sync_one(path: Path) -> None:
    """Makes one file's content, or one folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, target: Path, scratch: Path) -> None:
    """Puts the folder `new` at `target`; what was there goes into `scratch`. All three on one file system.

    Linux cannot exchange two folders portably: between the two renames `target` is missing, never half-written.
    """
    sync(new)
    if target.exists():
        target.rename(scratch / "replaced")
    try:
        new.rename(target)
    except BaseException:
        if (scratch / "replaced").exists():
            (scratch / "replaced").rename(target)
        raise
    sync_one(target.parent)


def holds_only(folder: Path, names: Collection[str]) -> bool:
    """Whether `folder` has no entries but those named."""
    return all(entry.name in names for entry in folder.iterdir())
