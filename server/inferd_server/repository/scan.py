"""What lies in a model repository: `<model>/<version>/model.onnx`, and perhaps `<model>/config.pbtxt`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from inferd_protocol.artefact import CONFIG_FILE

from inferd_server.errors import ConfigurationError, LoadError

Fingerprint: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of modification and inode of each of a version's files: another when any of them is another."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """One model's folder: its versions in rising order, and its config.pbtxt where it has one."""

    name: str
    path: Path
    versions: tuple[int, ...]
    config: Path | None

    def fingerprint(self, version: int) -> Fingerprint:
        """What a version is made of at this moment: its own files and those beside the version folders.

        Nothing where folders go while they are looked at: whoever looks next sees what has become of them.
        """
        own = self.path / str(version)
        try:
            files = [path for path in (*own.rglob("*"), *self.path.iterdir()) if path.is_file()]
        except FileNotFoundError:
            return ()
        marks = []
        for path in sorted(files):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            marks.append((str(path.relative_to(self.path)), stat.st_size, stat.st_mtime_ns, stat.st_ino))
        return tuple(marks)


def read_directory(folder: Path) -> ModelDirectory:
    """One model's folder. Raises LoadError where it is no model."""
    model = _model(folder) if folder.is_dir() else None
    if model is None:
        raise LoadError(f"{folder.name} has neither a version folder nor a {CONFIG_FILE}")
    return model


def scan(repository: Path, *, may_be_empty: bool = False) -> Mapping[str, ModelDirectory]:
    """The models in a repository, by name.

    A model is a folder that has a version folder (named by a whole number from 1) or a config.pbtxt; hidden folders,
    such as those a publisher writes aside, are none. Raises ConfigurationError where the repository is missing, is no
    folder, or holds no model and must not be empty.
    """
    if not repository.is_dir():
        what = "is no folder" if repository.exists() else "does not exist"
        raise ConfigurationError(f"--model-repository {repository} {what}: expected <model>/<version>/model.onnx in it")
    try:
        folders = sorted(entry for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        models = {folder.name: model for folder in folders if (model := _model(folder))}
    except OSError as error:
        raise ConfigurationError(f"--model-repository {repository} cannot be read: {error}") from error
    if not models and not may_be_empty:
        raise ConfigurationError(
            f"--model-repository {repository} holds no model: expected <model>/<version>/model.onnx in it, "
            "as `inferd publish` writes it"
        )
    return models


def _model(folder: Path) -> ModelDirectory | None:
    versions = sorted(int(entry.name) for entry in folder.iterdir() if entry.is_dir() and _is_version(entry.name))
    config = folder / CONFIG_FILE
    if not versions and not config.is_file():
        return None
    return ModelDirectory(folder.name, folder, tuple(versions), config if config.is_file() else None)


def _is_version(name: str) -> bool:
    """Whole numbers from 1, written plainly: `01` and `1` would be one version twice."""
    return name.isascii() and name.isdigit() and not name.startswith("0")
