"""The graph made smaller in stages, each of which is kept only where the model still answers the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from inferd_training.optimise.graph import folding, layout, slimming
from inferd_training.optimise.graph.admission import admit
from inferd_training.optimise.graph.answers import NotComparable, Reference, difference, reference
from inferd_training.optimise.graph.directions import reduce_first
from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.indexing import trust_indices
from inferd_training.optimise.graph.interface import frozen, kept
from inferd_training.optimise.graph.maxima import split_maxima
from inferd_training.optimise.graph.normalisation import fuse_normalisations
from inferd_training.optimise.graph.recurrent import tidy_recurrent
from inferd_training.optimise.graph.selection import join_selections


@dataclass(frozen=True, slots=True)
class Simplified:
    """A model that answers as the one it was made of. `notes`: what was done, what was not and why, a line each."""

    proto: onnx.ModelProto
    notes: tuple[str, ...]


Stage = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, list[str]]]
"""Gives a changed copy and what it did, or the model itself and why it did nothing. It may raise anything."""


def simplify(proto: onnx.ModelProto, samples: Mapping[str, NDArray[Any]] | None = None) -> Simplified:
    """A model of standard ONNX operators, of the same opset, with fewer nodes and the same answers.

    Constants are folded, scales, offsets and batch normalisations go into weights, and Transposes and reshapes are left
    out where nothing needs them. Inputs, outputs, metadata and opset stay; `proto` is not changed. A stage after which
    onnx.checker refuses the model, or ONNX Runtime answers otherwise, is dropped, and a note says so.

    `samples` are inputs by name to compare the answers on, [rows, ...]; without them, random ones are drawn. A model
    that nothing can be done to is given back itself. Raises OptimiseError for one that could not be served in any case
    (see `admission.admit`).
    """
    reason = admit(proto)
    if reason is not None:
        return Simplified(proto, (reason,))
    current, defaults = frozen(proto)
    notes = [f"{defaults} initialisers were inputs with defaults, and are constants"] if defaults else []
    try:
        expected = reference(current, samples)
    except NotComparable as error:
        return Simplified(proto, (f"nothing was changed: its answers cannot be compared, since {error}",))
    for name, alternatives in _STAGES:
        current, lines = _stage(name, alternatives, current, expected)
        notes.extend(lines)
    # Shapes of tensors: those of tensors that are gone, and what any reader infers by itself.
    del current.graph.value_info[:]
    return Simplified(current, (*notes, f"{_nodes(proto)} became {_nodes(current)}"))


def _slimmed(proto: onnx.ModelProto, *, cautious: bool) -> tuple[onnx.ModelProto, list[str]]:
    slimmed = slimming.slim(proto, cautious=cautious)
    fewer = len(slimmed.graph.node) < len(proto.graph.node)
    return slimmed, [f"{_nodes(proto)} became {_nodes(slimmed)}"] if fewer else []


def _edited(change: Callable[[Editor], tuple[int, list[str]]]) -> Stage:
    def run(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
        editor = Editor(proto)
        count, notes = change(editor)
        return (editor.built() if count else proto), notes

    return run


_STAGES: tuple[tuple[str, tuple[Stage, ...]], ...] = (
    (
        "constant folding",
        (lambda proto: _slimmed(proto, cautious=False), lambda proto: _slimmed(proto, cautious=True)),
    ),
    ("normalisations", (_edited(fuse_normalisations),)),
    ("recurrent layers", (_edited(tidy_recurrent),)),
    ("directions", (_edited(reduce_first),)),
    ("largest values", (_edited(split_maxima),)),
    ("indices", (_edited(trust_indices),)),
    ("selections by a mask", (_edited(join_selections),)),
    ("layout", (_edited(layout.straighten),)),
    ("scales behind weights", (_edited(folding.fold_behind),)),
    ("scales before weights", (_edited(folding.fold_before),)),
)
"""In this order: constants must be known before they can be folded, and nodes lie side by side before those between
them are folded. Of a stage's alternatives the first one that works is taken."""


def _stage(
    name: str, alternatives: tuple[Stage, ...], current: onnx.ModelProto, expected: Reference
) -> tuple[onnx.ModelProto, list[str]]:
    notes = list[str]()
    for alternative in alternatives:
        try:
            changed, lines = alternative(current)
            if changed is current:
                return current, [*notes, *(f"{name}: {line}" for line in lines)]
            changed = kept(changed, current)
            onnx.checker.check_model(changed, full_check=True)
            fault = difference(expected, changed)
        except Exception as error:  # noqa: BLE001 - a stage that fails in whichever way costs the stage, not the model
            fault = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if fault is None:
            return changed, [*notes, *(f"{name}: {line}" for line in lines)]
        notes.append(f"{name}: dropped, since after it {fault}")
    return current, notes


def _nodes(proto: onnx.ModelProto) -> str:
    count = len(proto.graph.node)
    return f"{count} node{'' if count == 1 else 's'}"
