"""Token ids: bytes plus one, padded with zeros, never longer than 128."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from inferd_training.data.kinds import LENGTH, TEXT, VOCABULARY
from inferd_training.data.tokens import encode, encode_all
from inferd_training.errors import DataError


def decode(tokens: np.ndarray) -> bytes:
    return bytes(int(token) - 1 for token in tokens[tokens > 0])


@given(st.text(max_size=200))
@example("")
@example("\0")
@example("ÿ" * 64)
@example("é" * 65)
def test_the_ids_are_the_bytes(text: str) -> None:
    tokens = encode(text)
    content = text.encode()[:LENGTH]
    assert (tokens.dtype, tokens.shape) == (np.int32, (LENGTH,))
    assert decode(tokens) == content
    # Padding is at the end only: a NUL in the text is no padding.
    assert (tokens[: len(content)] > 0).all()
    assert (tokens[len(content) :] == 0).all()
    assert tokens.max(initial=0) < VOCABULARY


@given(st.text(max_size=40), st.text(max_size=40))
def test_different_texts_have_different_ids(one: str, other: str) -> None:
    assert (encode(one) == encode(other)).all() == (one == other)


def test_the_kind_says_how_ids_are_made() -> None:
    told = TEXT.tokeniser
    text = "Ein Beispiel, größer als eins."
    content = list(text.encode(told["encoding"]))[: told["length"]]
    by_hand = [byte + told["offset"] for byte in content]
    by_hand += [told["padding"]] * (told["length"] - len(by_hand))
    assert encode(text).tolist() == by_hand
    assert told["vocabulary"] == 256 + told["offset"]


def test_many_at_once() -> None:
    tokens = encode_all(["a", "", "größer"])
    assert (tokens.dtype, tokens.shape) == (np.int32, (3, LENGTH))
    assert tokens[:, 0].tolist() == [98, 0, 104]
    assert encode_all([]).shape == (0, LENGTH)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DataError, match="lone surrogate at position 2"):
        encode("ab\ud800")
