"""What a family declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inferd_training.data.kinds import Kind

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a raw input undergoes before the model: cast from `dtype` to float32, times `scale`, plus `offset`."""

    dtype: str
    scale: float
    offset: float = 0.0

    def apply(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Raw values as the model takes them: float32, of the same shape."""
        return raw.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)


@dataclass(frozen=True, slots=True)
class Family:
    """A model family for one kind of data.

    `build(classes)` gives the model with fresh weights, not compiled. `preprocessing` is by input name, and becomes
    part of the exported graph. `learning_rates` has the peak rate of each optimizer that may be chosen.
    """

    name: str
    summary: str
    kind: Kind
    build: Callable[[int], keras.Model]
    preprocessing: Mapping[str, Scaling]
    epochs: int
    batch_size: int
    learning_rates: Mapping[str, float]
