"""A user's own labelled texts: what is read, and one sentence for each mistake."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_training.data import datasets, tsv
from inferd_training.data.tokens import encode
from inferd_training.errors import DataError
from tiny_data import write
from tiny_texts import tiny_texts

GOOD = b"ham\tsee you at noon\nspam\tyou have won\nham\tthank you\n"


def folder(tmp_path: Path, train: bytes = GOOD, test: bytes = GOOD) -> Path:
    return write(tmp_path / "data", {tsv.TRAIN_TEXT: train, tsv.TEST_TEXT: test})


def test_labels_and_tokens(tmp_path: Path) -> None:
    data = datasets.load("text", folder(tmp_path))
    assert (data.name, data.source, data.labels) == ("text", "the user's own files", ("ham", "spam"))
    assert data.train.truth.tolist() == [0, 1, 0]
    assert np.array_equal(data.test.inputs[1], encode("you have won"))
    assert data.validation is None
    assert sorted(data.sha256) == ["test.tsv", "train.tsv"]


def test_a_part_to_validate_on_is_taken_where_there_is_one(tmp_path: Path) -> None:
    data = datasets.load("text", write(tmp_path / "data", tiny_texts(validation=6)))
    fitted, validation = data.split(seed=0)
    assert (fitted, validation) == (data.train, data.validation)
    assert sorted(data.sha256) == ["test.tsv", "train.tsv", "validation.tsv"]


def test_without_one_some_are_held_out(tmp_path: Path) -> None:
    data = datasets.load("text", write(tmp_path / "data", tiny_texts(train=48)))
    fitted, validation = data.split(seed=1)
    assert (len(fitted), len(validation)) == (44, 4)
    rows = {row.tobytes() for row in fitted.inputs} | {row.tobytes() for row in validation.inputs}
    assert rows == {row.tobytes() for row in data.train.inputs}
    other, _validation = data.split(seed=2)
    assert not np.array_equal(fitted.inputs, other.inputs)


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    plain = datasets.load("text", folder(tmp_path / "plain"))
    other = datasets.load("text", folder(tmp_path / "other", b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"), GOOD[:-1]))
    assert np.array_equal(plain.train.inputs, other.train.inputs)
    assert np.array_equal(plain.test.inputs, other.test.inputs)
    assert other.labels == plain.labels


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\ufeff"), min_size=1, max_size=20).filter(
    lambda cell: cell == cell.strip() and cell.casefold() not in ("label", "text")
)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_what_is_written_is_read(examples: list[tuple[str, str]]) -> None:
    assert tsv.parse(tsv.write(examples), "a file") == examples


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        examples = tsv.parse(content, "a file")
    except DataError:
        return
    assert examples
    assert all(label and text for label, text in examples)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (b"", "train.tsv holds no lines: at least one label<TAB>text was expected"),
        (b"ham\tone\nspam two\n", "line 2 of train.tsv has 0 tabs where label<TAB>text was expected"),
        (b"ham\tone\ttwo\n", "line 1 of train.tsv has 2 tabs"),
        (b"ham\tone\n\nspam\ttwo\n", "line 2 of train.tsv has 0 tabs"),
        (b"ham\tone\n \ttwo\n", "line 2 of train.tsv has no label"),
        (b"ham\tone\nspam\t \n", "line 2 of train.tsv has no text"),
        (b"ham\tone\nspam\tgr\xf6\xdfer\n", "line 2 of train.tsv is not UTF-8: save the file in that encoding"),
        (b"Label\tText\nham\tone\nspam\ttwo\n", "line 1 of train.tsv is a heading"),
        (b"ham\tone\nham\ttwo\n", "every line of train.tsv has the label 'ham'"),
        (b"".join(b"text %d\tham\n" % n for n in range(1001)), "1001 different labels.*is the label in the first"),
        ("ham\tone\nspam\ttwo\n".encode("utf-16"), "train.tsv is not UTF-8"),
    ],
    ids=["empty", "no-tab", "two-tabs", "gap", "no-label", "no-text", "latin-1", "heading", "one", "swapped", "utf-16"],
)
def test_files_that_are_refused(tmp_path: Path, train: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        datasets.load("text", folder(tmp_path, train))
    assert "\n" not in str(refusal.value)


def test_a_label_that_training_never_sees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"line 2 of test\.tsv has the label 'eggs' where one of ham, spam was expected: correct it, or add",
    ):
        datasets.load("text", folder(tmp_path, test=b"ham\tone\neggs\ttwo\n"))


def test_labels_of_ones_own_need_a_data_set_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'ham' where one of German, .* was expected: say --dataset text for labels"):
        datasets.load("manpages", folder(tmp_path))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder: give the one that holds train.tsv and test.tsv"):
        datasets.load("text", tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"lacks train.tsv and test.tsv"):
        datasets.load("text", tmp_path / "data")
    (tmp_path / "data" / "train.tsv").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"lacks test.tsv \(label<TAB>text, a line each\): add them"):
        datasets.load("text", tmp_path / "data")


def test_texts_of_ones_own_need_a_folder() -> None:
    with pytest.raises(DataError, match=r"'text' is labelled texts of your own: give a folder with train.tsv and test"):
        datasets.load("text")


def test_one_line_is_too_few_to_hold_one_out(tmp_path: Path) -> None:
    data = datasets.load("manpages", folder(tmp_path, b"German\tein Satz\n", b"German\tein Satz\n"))
    with pytest.raises(DataError, match="1 training passages came, where at least 2 were expected"):
        data.split(0)
