"""Publishing: a verified artefact appears in a model repository whole, or not at all.

Everything is written into a hidden folder, made durable, and renamed into place; a rename onto a folder that exists and
is not empty fails, so of two publishers of one version exactly one wins.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from inferd_protocol.artefact import GOLDEN_FILE, MODEL_FILE, REPORT_FILE

from inferd_training.errors import PublishError, VerificationError
from inferd_training.export.report import check_report, external_files
from inferd_training.files import hidden_folder, sync, sync_one

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_VERSION = re.compile(r"[1-9][0-9]*")
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


def publish(
    export: Path,
    repository: Path,
    name: str,
    version: int | None = None,
    *,
    rename: Callable[[Path, Path], object] = Path.rename,
) -> Path:
    """Publishes the export in the folder `export` as `<repository>/<name>/<version>` and returns that folder.

    Without `version`, the next one after the newest that is there, 1 if there is none. `rename` is for tests. Raises
    PublishError for a bad name or version, an unverified model, or a version that exists.
    """
    if not _NAME.fullmatch(name):
        raise PublishError(
            f"'{name}' is not a model name: letters, digits, '_', '-', '.' were expected, the first not '-' or '.'"
        )
    if version is not None and version < 1:
        raise PublishError(f"the version {version} was asked for, where a whole number from 1 was expected")
    for file in (MODEL_FILE, REPORT_FILE):
        if not (export / file).is_file():
            raise PublishError(f"{export} lacks {file}, so nothing verified is there: run `inferd export` first")
    model = repository / name
    for folder in (repository, model):
        if folder.exists() and not folder.is_dir():
            raise PublishError(f"{folder} is a file, where a folder was expected: choose another")
    while True:
        number = _next(model) if version is None else version
        if version is not None and (model / str(version)).exists():
            raise PublishError(
                f"version {version} of {name} exists in {repository}: leave the version out to take the next one"
            )
        # Lost races are tried again: only the version is taken, or another version brought the model's folder.
        if _place(export, repository, model, number, rename):
            return model / str(number)


def _place(export: Path, repository: Path, model: Path, version: int, rename: Callable[[Path, Path], object]) -> bool:
    """Publishes one version; False where another publisher took its place meanwhile."""
    first = not model.exists()
    try:
        weights = external_files(export / MODEL_FILE)
    except VerificationError as error:
        raise PublishError(f"{export} is not a verified export: {error}") from error
    # The first version brings the model's folder with it, so that no empty model is ever seen. A later one is written
    # inside the model's folder, which may be on a file system of its own.
    with hidden_folder(repository if first else model) as scratch:
        content = scratch / "model" / str(version)
        content.mkdir(parents=True)
        try:
            golden = (GOLDEN_FILE,) if (export / GOLDEN_FILE).exists() else ()
            for file in (MODEL_FILE, *weights, REPORT_FILE, *golden):
                (content / file).parent.mkdir(parents=True, exist_ok=True)
                # A copy, however large: through a hard link, who writes into the export would alter what is served.
                shutil.copyfile(export / file, content / file)
        except OSError as error:
            raise PublishError(f"{export} cannot be copied to {repository}: {error.strerror}") from error
        try:
            # The copy is checked, not the original: it is the copy that will be served.
            check_report(content / MODEL_FILE, content / REPORT_FILE)
        except VerificationError as error:
            raise PublishError(f"{export} is not a verified export: {error}") from error
        sync(scratch)
        source, target = (scratch / "model", model) if first else (content, model / str(version))
        try:
            rename(source, target)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise PublishError(f"{target} cannot be published: {error.strerror}") from error
        sync_one(target.parent)
    return True


def _next(model: Path) -> int:
    if not model.is_dir():
        return 1
    return max((int(entry.name) for entry in model.iterdir() if _VERSION.fullmatch(entry.name)), default=0) + 1
