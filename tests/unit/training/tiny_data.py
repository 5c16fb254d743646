"""Data sets small enough to train on in a test."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from inferd_training.data import idx, known

Contents = dict[str, bytes]


def tiny_contents(train: int = 48, test: int = 24, seed: int = 0) -> Contents:
    """Four IDX files of random images; a bright square tells the class, so that there is something to learn."""
    generator = np.random.default_rng(seed)

    def part(count: int) -> tuple[bytes, bytes]:
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = generator.integers(0, 100, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[7 * row : 7 * row + 7, 7 * column : 7 * column + 7] = 255
        return idx.encode(images), idx.encode(labels)

    train_images, train_labels = part(train)
    test_images, test_labels = part(test)
    return {
        known.TRAIN_IMAGES: train_images,
        known.TRAIN_LABELS: train_labels,
        known.TEST_IMAGES: test_images,
        known.TEST_LABELS: test_labels,
    }


def write(folder: Path, contents: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder
