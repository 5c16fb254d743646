"""The kinds of data that there are: what one example is called, and what a model is given of it.

Light, since the command line asks for it: no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LENGTH = 128
"""Token ids of a passage: the longest text, in bytes of UTF-8, that a model sees whole."""

PADDING = 0
"""The id that fills up a passage shorter than LENGTH."""

VOCABULARY = 257
"""Ids there are: PADDING, and one for each value of a byte."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of data. `shape` and `dtype` are those of one example as clients send it.

    `examples` is the word for several examples, in messages. `tokeniser` says, where clients have texts, how ids are
    made of them; it goes into the artefact's metadata.
    """

    name: str
    examples: str
    shape: tuple[int, ...]
    dtype: str
    tokeniser: Mapping[str, Any] = field(default_factory=dict)


IMAGES = Kind("grey images of 28x28 pixels", "images", (28, 28, 1), "uint8")

TEXT = Kind(
    "text",
    "passages",
    (LENGTH,),
    "int32",
    {
        "encoding": "utf-8",
        "unit": "byte",
        "offset": 1,
        "padding": PADDING,
        "length": LENGTH,
        "vocabulary": VOCABULARY,
        "words": f"the first {LENGTH} bytes of the text in UTF-8, each plus 1, then {PADDING} up to {LENGTH} ids",
    },
)
