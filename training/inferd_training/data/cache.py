"""The cache: the files of a data set in a folder of their own, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from inferd_training.errors import SourceUnavailable


def read(folder: Path, files: Sequence[str], reader: Callable[[Path], dict[str, bytes]]) -> dict[str, bytes]:
    """What `reader` finds in a cache folder. Raises SourceUnavailable where one of `files` is missing."""
    if not all((folder / name).is_file() for name in files):
        raise SourceUnavailable("empty")
    return reader(folder)


def write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Keeps the files in `folder`, each written aside and renamed: parallel processes write the same verified bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
            # mkstemp makes files for their owner alone; what is in a cache may be read by all whom its folder admits.
            Path(temporary).chmod(0o644)
            Path(temporary).replace(folder / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
