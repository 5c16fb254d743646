"""Tiny data sets and models. TensorFlow is loaded only by the tests that ask for a model."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from inferd_training.data import known
from tiny_data import Contents, tiny_contents, write

# Before anything imports TensorFlow: its start-up messages say nothing about the tests.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lets through what TensorFlow and Keras say to each other; whatever else warns is an error."""
    for item in items:
        if item.path.is_relative_to(_FOLDER):
            # Keras 3.15 asks TensorFlow's variables for numpy arrays in a way that numpy 2 deprecates.
            item.add_marker(pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"))


@pytest.fixture
def contents() -> Contents:
    return tiny_contents()


@pytest.fixture
def data_folder(tmp_path: Path, contents: Contents) -> Path:
    return write(tmp_path / "data", contents)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, contents: Contents) -> known.KnownDataset:
    """The tiny data set, known by the name "tiny" for the length of a test."""
    dataset = known.KnownDataset("tiny", "Tiny", tuple("abcdefghij"), known.hashes(contents))
    monkeypatch.setitem(known.DATASETS, "tiny", dataset)  # type: ignore[arg-type]
    return dataset


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test reads or fills the developer's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Path]:
    """Puts a shell script in front of everything else on the PATH, in place of a client that would use the network."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, body: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return put
