"""Labelled texts in files: `label<TAB>text`, a line each, in UTF-8.

A folder has `train.tsv` and `test.tsv`, and `validation.tsv` where it says what to validate on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from inferd_training.data.dataset import Part
from inferd_training.data.tokens import encode_all
from inferd_training.errors import DataError

TRAIN_TEXT = "train.tsv"
VALIDATION_TEXT = "validation.tsv"
TEST_TEXT = "test.tsv"

_MOST_LABELS = 1000
"""More are no classes: the columns are swapped, or the labels are numbers to be predicted."""

_MOST_BYTES = 2**30
"""Of one file: it is read whole."""

_NAMED = 10
"""Labels that a message names."""

Example = tuple[str, str]
"""A label and a text."""


def read_folder(folder: Path) -> dict[str, bytes]:
    """The contents of the files in `folder`, by name. Raises DataError where one is missing or cannot be read."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the one that holds {TRAIN_TEXT} and {TEST_TEXT}")
    missing = [name for name in (TRAIN_TEXT, TEST_TEXT) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} lacks {' and '.join(missing)} (label<TAB>text, a line each): add them")
    contents = {}
    for path in (folder / name for name in (TRAIN_TEXT, VALIDATION_TEXT, TEST_TEXT)):
        if not path.is_file():
            continue
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise DataError(f"{path} has more than {_MOST_BYTES} bytes, which are read at once: give fewer lines")
            contents[path.name] = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return contents


def parse(content: bytes, name: str) -> list[Example]:
    """The examples of a file; `name` is for messages.

    Raises DataError, naming the line, for one that is not UTF-8, has not exactly one tab, lacks a label or a text, or
    is a heading.
    """
    examples: list[Example] = []
    # Not splitlines, to which a text may hold several line ends of Unicode's.
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            cells = line.removesuffix(b"\r").decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of {name} is not UTF-8: save the file in that encoding") from error
        if len(cells) != 2:
            raise DataError(
                f"line {number} of {name} has {len(cells) - 1} tabs where label<TAB>text was expected: correct the line"
            )
        label, text = (cell.strip() for cell in cells)
        if number == 1 and (label.casefold(), text.casefold()) == ("label", "text"):
            raise DataError(f"line 1 of {name} is a heading where an example was expected: remove it")
        if not label or not text:
            raise DataError(f"line {number} of {name} has no {'text' if label else 'label'}: correct or remove it")
        examples.append((label, text))
    if not examples:
        raise DataError(f"{name} holds no lines: at least one label<TAB>text was expected")
    return examples


def write(examples: Iterable[Example]) -> bytes:
    """Examples as a file's content. No label or text may hold a tab or a line end."""
    return "".join(f"{label}\t{text}\n" for label, text in examples).encode("utf-8")


def labels_of(examples: Iterable[Example], name: str) -> tuple[str, ...]:
    """The labels, each once, sorted. Raises DataError for fewer than two, or for more than there can be classes."""
    labels = tuple(sorted({label for label, _text in examples}))
    if len(labels) < 2:
        raise DataError(f"every line of {name} has the label '{labels[0]}', where at least two labels were expected")
    if len(labels) > _MOST_LABELS:
        raise DataError(
            f"{name} holds {len(labels)} different labels, where at most {_MOST_LABELS} were expected: is the label in "
            "the first column?"
        )
    return labels


def part(examples: list[Example], labels: tuple[str, ...], name: str, advice: str) -> Part:
    """The examples as token ids and indices into `labels`: int32 [count, 128] and int32 [count].

    Raises DataError, naming the line, for a label that is not among them; `advice` ends its message.
    """
    index: Mapping[str, int] = {label: number for number, label in enumerate(labels)}
    truth = np.empty(len(examples), np.int32)
    for row, (label, _text) in enumerate(examples):
        if label not in index:
            some = ", ".join(labels[:_NAMED]) + (", ..." if len(labels) > _NAMED else "")
            raise DataError(
                f"line {row + 1} of {name} has the label '{label}' where one of {some} was expected: {advice}"
            )
        truth[row] = index[label]
    return Part(encode_all([text for _label, text in examples]), truth)
