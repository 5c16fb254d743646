"""Grey images in the four IDX files of the MNIST family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from inferd_training.data import idx
from inferd_training.data.dataset import Dataset, Part
from inferd_training.data.format import OWN_FILES, Format
from inferd_training.data.kinds import IMAGES
from inferd_training.data.known import (
    FILES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    KnownDataset,
    check_hashes,
    hashes,
    recognise,
)
from inferd_training.data.sources import SOURCES, read_folder
from inferd_training.errors import DataError


def _check(dataset: KnownDataset, contents: Mapping[str, bytes], source: str) -> None:
    check_hashes(dataset, hashes(contents), source)


def _parse(dataset: KnownDataset, contents: Mapping[str, bytes], source: str) -> Dataset:
    return Dataset(
        name=dataset.name,
        kind=IMAGES,
        labels=dataset.labels,
        source=source,
        sha256=hashes(contents),
        train=_part(contents, TRAIN_IMAGES, TRAIN_LABELS, len(dataset.labels)),
        test=_part(contents, TEST_IMAGES, TEST_LABELS, len(dataset.labels)),
    )


def _part(contents: Mapping[str, bytes], images: str, labels: str, classes: int) -> Part:
    pixels = idx.parse_images(contents[images], images)
    truth = idx.parse_labels(contents[labels], labels, classes)
    if len(pixels) != len(truth):
        raise DataError(
            f"{images} holds {len(pixels)} images but {labels} {len(truth)} labels, where as many were "
            "expected: give files that belong together"
        )
    return Part(pixels[..., np.newaxis], truth)


def _own(dataset: KnownDataset, folder: Path) -> Dataset:
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


FORMAT = Format(
    files=FILES,
    read=read_folder,
    check=_check,
    parse=_parse,
    own=_own,
    sources=SOURCES,
    advice="the four IDX files",
)
