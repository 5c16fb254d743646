"""Passages: how they are cut, and that no page, and no text, is in two parts."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_training.data import passages
from inferd_training.data.passages import LENGTH, SHORTEST, Passage, cut, deal, part_of

SENTENCE = "der Befehl gibt den Namen der Datei aus."


def made(label: str, page: str, count: int) -> list[Passage]:
    """Texts of their own for each page: letters drawn from the page's and the class's name."""
    drawn = random.Random(f"{label} {page}")
    return [Passage(label, page, "".join(drawn.choices("abcdefgh ", k=40))) for _ in range(count)]


def pages(count: int, each: int) -> list[Passage]:
    return [
        passage
        for number in range(count)
        for label in ("German", "French")
        for passage in made(label, f"man1/page{number}.1", each)
    ]


def test_sentences_are_passages() -> None:
    assert list(cut(f"{SENTENCE} {SENTENCE.replace('aus', 'ein')} Kurz.")) == [SENTENCE, SENTENCE.replace("aus", "ein")]


def test_long_sentences_are_cut_between_words() -> None:
    sentence = "immer weiter und weiter ohne Halt " * 10
    cuts = list(cut(sentence))
    assert len(cuts) == 3
    assert " ".join(cuts) == sentence.strip()


@pytest.mark.parametrize(
    "code", ["--block-size", "-n", "/etc/passwd", "read_all", "x86", "a=b", "<stdio.h>", "libc.so", "·", "$HOME"]
)
def test_code_is_left_out(code: str) -> None:
    assert list(cut(SENTENCE.replace("Namen", f"Namen {code}"))) == [SENTENCE]


def test_letters_alone_are_words() -> None:
    assert list(cut("el fichero y el directorio o a la entrada")) == ["el fichero y el directorio o a la entrada"]


@pytest.mark.parametrize(
    "text", ["zu kurz", "Mike Parker, David MacKenzie, Jim Meyering, Paul Eggert", "x" * 200, "", "1 2 3 4 5 6 7 8 9"]
)
def test_what_is_no_prose(text: str) -> None:
    assert list(cut(text)) == []


@given(st.text(max_size=400))
def test_every_passage_has_its_length(text: str) -> None:
    for passage in cut(text):
        assert SHORTEST <= len(passage.encode()) <= LENGTH
        assert passage == " ".join(passage.split())


def test_no_page_and_no_text_is_in_two_parts() -> None:
    parts = deal(pages(60, 5))
    for kind in ("page", "text"):
        seen = [{getattr(passage, kind) for passage in part} for part in parts]
        assert not seen[0] & seen[1]
        assert not seen[0] & seen[2]
        assert not seen[1] & seen[2]
    assert all(parts)
    assert {passage.page for part in parts for passage in part} == {f"man1/page{number}.1" for number in range(60)}
    assert all(part_of(passage.page) == number for number, part in enumerate(parts) for passage in part)


def test_a_page_and_its_translation_are_in_one_part() -> None:
    labels = [{(passage.label, passage.page) for passage in part} for part in deal(pages(60, 5))]
    assert all({("French", page) for _label, page in part} <= part for part in labels)


def test_the_order_of_the_pages_changes_nothing() -> None:
    given_ = pages(30, 4)
    shuffled = random.Random(1).sample(given_, len(given_))
    assert deal(given_) == deal(shuffled)


def test_what_two_languages_have_is_in_neither() -> None:
    english = Passage("German", "man1/a.1", "The name of the file, which is read.")
    same = Passage("French", "man1/b.1", "the name of the file which is read")
    assert deal([english, same]) == ([], [], [])


def test_a_text_is_there_once_however_it_is_written() -> None:
    texts = ["Der Name der Datei.", "der name der datei", "Der Name (der Datei)", "Der Name der Datei."]
    dealt = deal(Passage("German", f"man1/{number}.1", text) for number, text in enumerate(texts))
    assert sum(map(len, dealt)) == 1


def test_a_long_page_does_not_fill_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "_SHARES", ((40, 1.0), (0, 0.0), (0, 0.0)))
    short = [passage for number in range(19) for passage in made("German", f"man1/{number}.1", 2)]
    train, _validation, _test = deal([*made("German", "man1/bash.1", 1000), *short])
    assert Counter(passage.page for passage in train) == {
        **{f"man1/{number}.1": 2 for number in range(19)},
        "man1/bash.1": 2,
    }


def test_no_class_has_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "_SHARES", ((30, 0.7), (3, 0.1), (5, 0.2)))
    for most, part in zip((30, 3, 5), deal(pages(60, 5)), strict=True):
        assert Counter(passage.label for passage in part) == {"German": most, "French": most}
