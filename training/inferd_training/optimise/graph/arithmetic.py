"""Arithmetic with shapes: what the nodes between a Shape and a Reshape compute, while the batch is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inferd_training.optimise.graph.extents import Extent, product

Numbers = tuple[Extent | None, ...]
"""What a tensor of integers holds, a scalar or one axis, as far as it is known."""


def computed(operator: str, operands: Sequence[Numbers]) -> Numbers | None:
    """What an operator gives for these inputs; None where that is not known."""
    compute = _COMPUTED.get(operator)
    return None if compute is None or not operands else compute(operands)


def _same(operands: Sequence[Numbers]) -> Numbers | None:
    return operands[0]


def _gathered(operands: Sequence[Numbers]) -> Numbers | None:
    numbers, places = operands
    chosen = [place.factor for place in places if place is not None and not place.free]
    if len(chosen) != len(places) or any(not -len(numbers) <= place < len(numbers) for place in chosen):
        return None
    return tuple(numbers[place] for place in chosen)


def _sliced(operands: Sequence[Numbers]) -> Numbers | None:
    numbers, *bounds = operands
    plain = [bound[0].factor for bound in bounds if len(bound) == 1 and bound[0] is not None and not bound[0].free]
    if len(plain) != len(bounds) or len(plain) < 2 or plain[2:3] not in ([], [0], [-1]):
        return None
    step = plain[3] if len(plain) > 3 else 1
    return numbers[plain[0] : plain[1] : step] if step > 0 else None


def _joined(operands: Sequence[Numbers]) -> Numbers | None:
    return tuple(number for operand in operands for number in operand)


def _multiplied(operands: Sequence[Numbers]) -> Numbers | None:
    length = max(len(operand) for operand in operands)
    left, right = (operand * length if len(operand) == 1 else operand for operand in operands)
    return tuple(product(pair) for pair in zip(left, right, strict=True)) if len(left) == len(right) else None


def _equal(operands: Sequence[Numbers]) -> Numbers | None:
    """The largest, where all are the same."""
    return operands[0] if all(operand == operands[0] for operand in operands) else None


def _product(operands: Sequence[Numbers]) -> Numbers | None:
    return (product(operands[0]),)


_COMPUTED: dict[str, Callable[[Sequence[Numbers]], Numbers | None]] = {
    "Cast": _same,
    "Concat": _joined,
    "Gather": _gathered,
    "Identity": _same,
    "Max": _equal,
    "Min": _equal,
    "Mul": _multiplied,
    "ReduceProd": _product,
    "Slice": _sliced,
    "Squeeze": _same,
    "Unsqueeze": _same,
}
