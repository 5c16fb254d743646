"""Passages in eight languages from Debian's manual pages and their translations: which language is it?"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from inferd_training.data import archives, debian, tsv
from inferd_training.data.known import hashes
from inferd_training.data.passages import Passage, cut, deal
from inferd_training.data.roff import paragraphs
from inferd_training.errors import DataError, SourceUnavailable

ORIGIN = "origin.json"
"""Beside the passages, JSON: the versions of the packages that they were made from, and their files' SHA-256."""

PACKAGES = {
    "German": "manpages-de",
    "English": "manpages",
    "Spanish": "manpages-es",
    "French": "manpages-fr",
    "Italian": "manpages-it",
    "Dutch": "manpages-nl",
    "Polish": "manpages-pl",
    "Portuguese": "manpages-pt-br",
}
"""By language. All are written in the Latin alphabet, so that no language is told by its letters alone."""

_PAGE = re.compile(r"\./usr/share/man/(?:[a-z]{2}(?:_[A-Z]{2})?/)?(man[1-9]/[^/]+)\.gz")

_WORD = re.compile(r"[^\W\d_]+")

_MOST_BYTES = 4 * 2**20
"""Of one page, packed or unpacked: the largest, bash(1), has 121 KB packed and 432 KB unpacked."""

_ENGLISH = {
    "and", "does", "each", "from", "have", "its", "only", "should", "than", "that", "the", "their", "them", "then",
    "there", "these", "they", "this", "those", "used", "when", "which", "while", "with", "would", "you", "your",
}  # fmt: skip
"""Words that the other languages lack: translations are not always complete, and one of these makes a passage English.
"""


def fetch(scratch: Path) -> dict[str, bytes]:
    """Downloads the packages and makes the files of `tsv` of them, and ORIGIN. Raises SourceUnavailable."""
    found = debian.download(list(PACKAGES.values()), scratch)
    passages: list[Passage] = []
    for language, package in PACKAGES.items():
        cuts = list(passages_of(language, pages(debian.archive(found[package]), package)))
        if not cuts:
            raise SourceUnavailable(f"{package} has no manual page that could be read")
        passages.extend(cuts)
    made = build(passages)
    versions = {package: debian.version(path) for package, path in found.items()}
    document = {"packages": versions, "sha256": hashes(made)}
    return {**made, ORIGIN: (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()}


@dataclass(frozen=True, slots=True)
class Origin:
    """What ORIGIN says: versions by package, SHA-256 by file name."""

    packages: Mapping[str, str]
    sha256: Mapping[str, str]


def origin(content: bytes, source: str) -> Origin:
    """Reads ORIGIN. Raises DataError where it is damaged; `source` is for its message."""
    try:
        document = json.loads(content)
        return Origin(dict(document["packages"]), dict(document["sha256"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{ORIGIN} from {source} is damaged ({error!r}): fetch it again") from error


def pages(archive: bytes, package: str) -> Iterator[tuple[str, str]]:
    """The manual pages of a package: name without language ("man1/ls.1") and roff source of each.

    Pages that are not gzip or not UTF-8 are passed over. Raises SourceUnavailable for a damaged archive.
    """
    for path, content in archives.members(archive, lambda name: bool(_PAGE.fullmatch(name)), _MOST_BYTES, package):
        try:
            # 16: with a gzip header. Bounded, since a packed page may unpack to anything.
            source = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(content, _MOST_BYTES).decode("utf-8")
        except (zlib.error, UnicodeDecodeError):
            continue
        yield _PAGE.sub(r"\1", path), source


def passages_of(language: str, sources: Iterable[tuple[str, str]]) -> Iterator[Passage]:
    """The passages of pages, given as `pages` does, that are written in `language`."""
    for page, source in sources:
        for paragraph in paragraphs(source):
            for text in cut(paragraph):
                if language == "English" or not _ENGLISH.intersection(_WORD.findall(text.casefold())):
                    yield Passage(language, page, text)


def build(passages: Iterable[Passage]) -> dict[str, bytes]:
    """The three files of a data set. The same passages, in whatever order, give the same files, byte for byte."""
    names = (tsv.TRAIN_TEXT, tsv.VALIDATION_TEXT, tsv.TEST_TEXT)
    return {
        name: tsv.write((passage.label, passage.text) for passage in part)
        for name, part in zip(names, deal(passages), strict=True)
    }
