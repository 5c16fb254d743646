"""The units of recurrent layers, as Keras lays their weights out.

A direction has a kernel [inputs, gates x units], a recurrent kernel [units, gates x units] and mostly a bias
[..., gates x units]: a unit has a column in each gate, and in the recurrent kernel a row, by which the others read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from keras import layers
from numpy.typing import NDArray

_GATES = {layers.GRU: 3, layers.LSTM: 4, layers.SimpleRNN: 1}
_CONCATENATED = "concat"

Weights = list[NDArray[Any]]
_Value = TypeVar("_Value")


def cell(layer: Any) -> Any:
    """The recurrent layer within one that runs it in both directions; any other layer itself."""
    return layer.forward_layer if type(layer) is layers.Bidirectional else layer


def is_recurrent(layer: Any) -> bool:
    """Whether a layer, in one direction or in both, is of a kind that is known here."""
    return type(cell(layer)) in _GATES


def groups(layer: Any) -> int:
    """How many units there are for each one of a direction: 2 where two directions lie beside each other.

    Where they are added up, or the like, a unit is one of each direction.
    """
    return 2 if type(layer) is layers.Bidirectional and layer.merge_mode == _CONCATENATED else 1


def by_direction(layer: Any, of_weights: Sequence[_Value]) -> list[Sequence[_Value]]:
    """What belongs to the weights of a layer, those of each direction apart."""
    count = len(of_weights) // (2 if type(layer) is layers.Bidirectional else 1)
    return [of_weights[start : start + count] for start in range(0, len(of_weights), count)]


def gates(layer: Any) -> int:
    """How many columns a unit has in a kernel."""
    return _GATES[type(cell(layer))]


def without_units(layer: Any, weights: Weights, kept: NDArray[np.intp]) -> Weights:
    """The weights with the units `kept` alone: ascending, those of a second group behind those of the first."""
    units = cell(layer).units
    first = kept[kept < units]
    parts = [first, kept[len(first) :] - units if groups(layer) > 1 else first]

    def take(direction: Sequence[NDArray[Any]], units_kept: NDArray[np.intp]) -> Weights:
        columns = (np.arange(gates(layer))[:, np.newaxis] * units + units_kept).ravel()
        kernel, recurrent, *bias = direction
        return [kernel[:, columns], recurrent[np.ix_(units_kept, columns)], *(each[..., columns] for each in bias)]

    return _each_direction(layer, weights, lambda number, direction: take(direction, parts[number]))


def without_inputs(layer: Any, weights: Weights, elements: NDArray[np.intp]) -> Weights:
    """The weights for those elements of the inputs alone."""
    return _each_direction(layer, weights, lambda _, direction: [direction[0][elements], *direction[1:]])


def _each_direction(layer: Any, weights: Weights, change: Callable[[int, Sequence[NDArray[Any]]], Weights]) -> Weights:
    directions = by_direction(layer, weights)
    return [weight for number, direction in enumerate(directions) for weight in change(number, direction)]
