"""What a kind of data declares, so that one loader serves all: its files, how they are read, where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from inferd_training.data.dataset import Dataset
from inferd_training.data.known import KnownDataset

Contents = dict[str, bytes]
"""Files without compression, by name."""

OWN_FILES = "the user's own files"


@dataclass(frozen=True, slots=True)
class Source:
    """One place. `fetch` gets the data set and a scratch folder on the cache's file system.

    It raises SourceUnavailable where the place cannot give the data set.
    """

    name: str
    fetch: Callable[[KnownDataset, Path], Contents]


@dataclass(frozen=True, slots=True)
class Format:
    """How data of one kind lie in files, and where those come from.

    `files` are what the cache keeps. `read` gives them from the cache's folder, `check` raises DataError where they are
    not what the source named in its last argument must have, `parse` makes the data set of them. `own` reads a user's
    folder. `sources` are tried in this order; `advice` says what a user gives where none has the data.
    """

    files: tuple[str, ...]
    read: Callable[[Path], Contents]
    check: Callable[[KnownDataset, Mapping[str, bytes], str], None]
    parse: Callable[[KnownDataset, Mapping[str, bytes], str], Dataset]
    own: Callable[[KnownDataset, Path], Dataset]
    sources: tuple[Source, ...]
    advice: str
