"""What every training gets, whatever the kind of data: inputs, true classes, and where both came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferd_training.data.kinds import Kind
from inferd_training.errors import DataError

HELD_OUT = 1 / 12
"""Of the training examples, where the data bring none to validate on: 5,000 of 60,000, MNIST's own customary split."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Examples: `inputs` as clients send them, [count, ...], and `truth`, the class of each: whole numbers [count]."""

    inputs: NDArray[Any]
    truth: NDArray[np.integer[Any]]

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A verified data set.

    `truth` in its parts are indices into `labels`. `source` says where the files came from, without a path; `sha256` is
    of each file without compression, by file name; `packages` are the versions of what the files were made from.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    source: str
    sha256: Mapping[str, str]
    train: Part
    test: Part
    validation: Part | None = None
    packages: Mapping[str, str] = field(default_factory=dict)

    def split(self, seed: int) -> tuple[Part, Part]:
        """What is fitted, and what is validated on: the data's own parts, else a twelfth held out by `seed`.

        Raises DataError where there are too few examples to hold one out.
        """
        if self.validation is not None:
            return self.train, self.validation
        order = np.random.default_rng(seed).permutation(len(self.train))
        held_out = max(1, round(len(order) * HELD_OUT))
        if len(order) <= held_out:
            raise DataError(
                f"{len(order)} training {self.kind.examples} came, where at least 2 were expected: one is held out for "
                "validation"
            )
        validation, fitted = order[:held_out], order[held_out:]
        return self._only(fitted), self._only(validation)

    def _only(self, rows: NDArray[np.intp]) -> Part:
        return Part(self.train.inputs[rows], self.train.truth[rows])
