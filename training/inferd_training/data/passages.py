"""Passages of prose, cut from pages and dealt out to the parts of a data set by page, so that nothing leaks.

A page and its translations fall into the same part: names and examples that they share cannot be learned by heart.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from inferd_training.data.kinds import LENGTH

SHORTEST = 32
"""Bytes of UTF-8 that a passage has at least: less is mostly names."""

_LEAST_SMALL = 0.4
"""Of a passage's words without a capital: German, which gives nouns one, has 0.68; credits and addresses have few."""

TRAIN, VALIDATION, TEST = 3000, 300, 500
"""Passages of each class in each part, at most."""

_SHARES = ((TRAIN, 0.70), (VALIDATION, 0.10), (TEST, 0.20))
"""Passages of each class, at most, and the share of the pages. The smaller parts have more pages than their passages
ask for, since pages differ in length."""

_CODE = re.compile(r"[\d_/\\=<>|{}\[\]$#@*~^+\"`]|^-|\.\w|^\W*$")
"""A word that is no prose: an option, a path, a name with a digit, a lone sign."""

_SENTENCE_END = re.compile(r"(?<=[.!?…:;])\s+")


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, its class and the page that it was cut from."""

    label: str
    page: str
    text: str


def cut(paragraph: str) -> Iterator[str]:
    """The passages of a paragraph, of SHORTEST to LENGTH bytes each: sentences without code, long ones in pieces."""
    for sentence in _SENTENCE_END.split(paragraph):
        piece: list[str] = []
        size = 0
        for word in (word for word in sentence.split() if not _CODE.search(word)):
            extent = len(word.encode())
            if piece and size + 1 + extent > LENGTH:
                yield from _prose(piece, size)
                piece, size = [], 0
            if extent <= LENGTH:
                size += extent + (1 if piece else 0)
                piece.append(word)
        yield from _prose(piece, size)


def _prose(piece: Sequence[str], size: int) -> Iterator[str]:
    """The piece as a text, where it is long enough and no mere row of names."""
    small = sum(word.lstrip("(").islower() for word in piece)
    if size >= SHORTEST and small >= _LEAST_SMALL * len(piece):
        yield " ".join(piece)


def deal(passages: Iterable[Passage]) -> tuple[list[Passage], list[Passage], list[Passage]]:
    """The training, validation and test passages: by page, no text twice, none that two classes have.

    Every page gives one passage before any gives its second, so that a long page does not fill a class. The order
    depends on the passages alone, not on the order in which they come.
    """
    unique = _unique(sorted(passages, key=lambda passage: (_draw_page(passage.page), passage.label, passage.text)))
    parts: tuple[list[Passage], ...] = ([], [], [])
    turns: Counter[tuple[str, str]] = Counter()
    ranked: list[tuple[int, str, Passage]] = []
    for passage in sorted(unique, key=lambda passage: _draw(passage.text)):
        turn = turns[passage.label, passage.page]
        turns[passage.label, passage.page] += 1
        ranked.append((turn, _draw_page(passage.page), passage))
    taken: Counter[tuple[str, int]] = Counter()
    for _turn, _page, passage in sorted(ranked, key=lambda entry: (*entry[:2], entry[2].label)):
        part = part_of(passage.page)
        if taken[passage.label, part] < _SHARES[part][0]:
            taken[passage.label, part] += 1
            parts[part].append(passage)
    train, validation, test = parts
    return train, validation, test


def part_of(page: str) -> int:
    """The part that a page falls into: 0 training, 1 validation, 2 test."""
    drawn = int(_draw_page(page)[:8], 16) / 2**32
    for part, (_most, share) in enumerate(_SHARES[:-1]):
        if drawn < share:
            return part
        drawn -= share
    return len(_SHARES) - 1


def _unique(passages: Sequence[Passage]) -> list[Passage]:
    """The first passage of each text, where only one class has it. Case and punctuation make no other text."""
    labels: dict[str, set[str]] = {}
    first: dict[str, Passage] = {}
    for passage in passages:
        key = _key(passage.text)
        labels.setdefault(key, set()).add(passage.label)
        first.setdefault(key, passage)
    return [passage for key, passage in first.items() if len(labels[key]) == 1]


def _key(text: str) -> str:
    return "".join(filter(str.isalpha, text.casefold()))


def _draw_page(page: str) -> str:
    # Among the prefixes tried, this one leaves every language enough pages for each part.
    return _draw(f"page {page}")


def _draw(text: str) -> str:
    """A number drawn for a text: the same on every machine, and without regard to the alphabet."""
    return hashlib.sha256(text.encode()).hexdigest()
