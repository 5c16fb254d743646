"""Labelled texts: passages in several languages, made of Debian's manual pages, or a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inferd_training.data import manpages, tsv
from inferd_training.data.dataset import Dataset, Part
from inferd_training.data.format import OWN_FILES, Contents, Format, Source
from inferd_training.data.kinds import TEXT
from inferd_training.data.known import MANPAGES, OWN_TEXT, KnownDataset, hashes
from inferd_training.errors import DataError, SourceUnavailable

_MADE = (tsv.TRAIN_TEXT, tsv.VALIDATION_TEXT, tsv.TEST_TEXT)


def _read(folder: Path) -> Contents:
    contents = tsv.read_folder(folder)
    contents[manpages.ORIGIN] = (folder / manpages.ORIGIN).read_bytes()
    return contents


def _check(_dataset: KnownDataset, contents: Mapping[str, bytes], source: str) -> None:
    """Packages have many versions, so there is no fixed hash to ask for: what was made must be what is there."""
    recorded = manpages.origin(contents[manpages.ORIGIN], source).sha256
    for name in _MADE:
        if recorded.get(name) != hashes(contents)[name]:
            raise DataError(f"{name} from {source} is not the file that was made: fetch it again")


def _parse(dataset: KnownDataset, contents: Mapping[str, bytes], source: str) -> Dataset:
    examples = {name: tsv.parse(contents[name], name) for name in _MADE if name in contents}
    labels = dataset.labels or tsv.labels_of(examples[tsv.TRAIN_TEXT], tsv.TRAIN_TEXT)
    advice = (
        f"say --dataset {OWN_TEXT.name} for labels of your own"
        if dataset.labels
        else f"correct it, or add examples of it to {tsv.TRAIN_TEXT}"
    )

    def part(name: str) -> Part:
        return tsv.part(examples[name], labels, name, advice)

    made = contents.get(manpages.ORIGIN)
    return Dataset(
        name=dataset.name,
        kind=TEXT,
        labels=labels,
        source=source,
        sha256=hashes({name: contents[name] for name in examples}),
        train=part(tsv.TRAIN_TEXT),
        test=part(tsv.TEST_TEXT),
        validation=part(tsv.VALIDATION_TEXT) if tsv.VALIDATION_TEXT in examples else None,
        packages={} if made is None else manpages.origin(made, source).packages,
    )


def _own(dataset: KnownDataset, folder: Path) -> Dataset:
    return _parse(dataset, tsv.read_folder(folder), OWN_FILES)


def _fetch(dataset: KnownDataset, scratch: Path) -> Contents:
    if dataset is not MANPAGES:
        raise SourceUnavailable("the texts are your own")
    return manpages.fetch(scratch)


FORMAT = Format(
    files=(*_MADE, manpages.ORIGIN),
    read=_read,
    check=_check,
    parse=_parse,
    own=_own,
    sources=(Source("apt-get download of Debian's manual pages", _fetch),),
    advice=f"{tsv.TRAIN_TEXT} and {tsv.TEST_TEXT} (label<TAB>text, a line each)",
)
