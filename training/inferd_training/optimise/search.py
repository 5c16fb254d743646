"""Mixed precision by search: a node is in INT8 where it pays on this machine, which only a clock can say.

What a node gains depends on its neighbours: between two in INT8 nothing is converted, a lone one pays for both ends.
So nodes move alone and in groups, a layer with what follows it, and the search goes from both ends, everything in
floating point and everything in INT8, and takes the better outcome. Last, layers that gained nothing go back: what is
in floating point answers as the original does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import onnx

from inferd_training.errors import OptimiseError

_LEADERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention"})
"""Operators that a layer begins with: they do the work, the rest follows."""

LEAST_GAIN = 1.01
"""A move that gains less is not told from noise, and not made."""

Evaluate = Callable[[frozenset[str], frozenset[str]], float]
"""How many times as good the second set of INT8 nodes is as the first; raises OptimiseError where it cannot be had."""


@dataclass(frozen=True, slots=True)
class Found:
    """The nodes in INT8, and the moves that led there, a line each. `complete`: not cut short by the time."""

    nodes: frozenset[str]
    moves: tuple[str, ...]
    complete: bool


def groups(proto: onnx.ModelProto, nodes: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The quantisable nodes by layer, in the graph's order: one that does the work, and those that follow it."""
    found: list[list[str]] = []
    for node in proto.graph.node:
        if node.op_type in _LEADERS or not found:
            found.append([])
        if node.name in nodes:
            found[-1].append(node.name)
    return tuple(tuple(group) for group in found if group)


def search(layers: Sequence[Sequence[str]], evaluate: Evaluate, seconds: float) -> Found:
    """The best set of nodes by `evaluate`, but for a hundredth that precision is worth, within about `seconds`."""
    ends = time.monotonic() + seconds
    everything = frozenset(name for layer in layers for name in layer)
    # Half of the time for each end: the second may use what the first left.
    first = _climb(frozenset(), layers, evaluate, time.monotonic() + seconds / 2)
    second = _climb(everything, layers, evaluate, ends)
    complete = first.complete and second.complete
    if first.nodes == second.nodes:
        return _relaxed(Found(first.nodes, first.moves + second.moves, complete), layers, evaluate, ends)
    try:
        better = second if evaluate(first.nodes, second.nodes) > 1 else first
    except OptimiseError:
        better = first
    return _relaxed(Found(better.nodes, better.moves, complete), layers, evaluate, ends)


def _relaxed(found: Found, layers: Sequence[Sequence[str]], evaluate: Evaluate, ends: float) -> Found:
    """Gives layers back to floating point as long as all of that together costs less than a move must gain.

    From the answers on: an error there is seen whole.
    """
    current, moves = found.nodes, list(found.moves)
    for layer in reversed(layers):
        goal = current - frozenset(layer)
        if goal == current:
            continue
        if time.monotonic() > ends:
            return Found(current, tuple(moves), complete=False)
        try:
            kept = evaluate(found.nodes, goal)
        except OptimiseError:
            continue
        if kept * LEAST_GAIN >= 1:
            moves.append(
                f"{', '.join(sorted(current - goal))} back to floating point, which costs nothing: {kept:.3f}x"
            )
            current = goal
    return Found(current, tuple(moves), found.complete)


def _climb(start: frozenset[str], layers: Sequence[Sequence[str]], evaluate: Evaluate, ends: float) -> Found:
    """Makes the moves that gain, until none does. A layer first: its nodes are looked at one by one afterwards."""
    current, moves = start, list[str]()
    steps = [*(tuple(layer) for layer in layers), *((name,) for layer in layers if len(layer) > 1 for name in layer)]
    pairs = [(*one, *other) for one, other in itertools.pairwise(layers)]
    tried: set[frozenset[str]] = {current}
    moved = True
    while moved:
        moved = False
        for step in (*steps, *pairs):
            for goal in (current | frozenset(step), current - frozenset(step)):
                if goal in tried:
                    continue
                if time.monotonic() > ends:
                    return Found(current, tuple(moves), complete=False)
                tried.add(goal)
                try:
                    gain = evaluate(current, goal)
                except OptimiseError as error:
                    moves.append(f"{step[0]} cannot be moved: {error}")
                    continue
                if gain >= LEAST_GAIN:
                    sign = "INT8" if len(goal) > len(current) else "floating point"
                    moves.append(f"{', '.join(step)} to {sign}: {gain:.3f}x")
                    current, moved = goal, True
                    tried.add(current)
    return Found(current, tuple(moves), complete=True)
