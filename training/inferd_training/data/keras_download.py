"""Keras's own downloader, run as a process: `python -m inferd_training.data.keras_download NAME FILE.npz`.

A process of its own, because the downloader knows no timeout, and so that fetching data does not load TensorFlow.
"""

from __future__ import annotations

import importlib
import sys

import numpy as np


def main(name: str, output: str) -> None:
    """Downloads `keras.datasets.<name>` and writes its four uint8 arrays to `output` (.npz)."""
    module = importlib.import_module(f"keras.datasets.{name}")
    (train_images, train_labels), (test_images, test_labels) = module.load_data()
    np.savez(
        output,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
