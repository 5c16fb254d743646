"""From a text to token ids: its UTF-8 bytes. There is no vocabulary to ship, and any language can be written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from inferd_training.data.kinds import LENGTH, PADDING
from inferd_training.errors import DataError

_OFFSET = PADDING + 1


def encode(text: str) -> NDArray[np.int32]:
    """The token ids of a text: int32 [128], each byte of its UTF-8 plus 1, then 0 to the end.

    What is beyond 128 bytes is cut off, within a character if need be. Raises DataError for a lone surrogate, which is
    no character and has no UTF-8.
    """
    try:
        content = text.encode("utf-8")[:LENGTH]
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds a lone surrogate at position {error.start}, which UTF-8 cannot write: correct its encoding"
        ) from error
    tokens = np.full(LENGTH, PADDING, np.int32)
    tokens[: len(content)] = np.frombuffer(content, np.uint8)
    tokens[: len(content)] += _OFFSET
    return tokens


def encode_all(texts: Sequence[str]) -> NDArray[np.int32]:
    """The token ids of texts: int32 [count, 128]. Raises DataError as `encode` does."""
    tokens = np.empty((len(texts), LENGTH), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        row[:] = encode(text)
    return tokens
