"""How many channels a narrower layer has."""

from __future__ import annotations

from inferd_training.errors import ModelError

MULTIPLE = 16
"""ONNX Runtime's convolutions work on blocks of 8 or 16 channels, by the CPU's vectors (AVX2, AVX-512), and are slower
where blocks are not full. Measured on AVX-512 with the reference CNN, 64 rows a run: with 22 instead of its first 32
channels it takes 1.31 times as long, with 24 1.19 times; with 20 and 40 of 32 and 64 1.04 times, with 16 and 32 0.47
times."""


def remaining(width: int, share: float, multiple: int = MULTIPLE) -> int:
    """How many of `width` channels are left when that share of them is gone, to the nearest whole `multiple`.

    At least one multiple, and at most all; a layer that has no more than one is not rounded, but keeps a channel.
    """
    exact = width * (1 - share)
    if width <= multiple:
        return max(1, round(exact))
    return min(width, multiple * max(1, round(exact / multiple)))


def check_multiple(multiple: int) -> None:
    """Raises ModelError for what is none."""
    if multiple < 1:
        raise ModelError(f"multiples of {multiple} channels were asked for, where at least 1 was expected")
