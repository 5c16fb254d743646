"""Holds a pipeline against the models of its steps: pure functions, whose errors name the step and both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferd_protocol.datatypes import BY_CONFIG

from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredConfig, DeclaredStep, DeclaredTensor
from inferd_server.runtime.backend import Dim, Signature, TensorSpec
from inferd_server.scheduling.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a tensor's way: who makes or takes it, and what it is there."""

    who: str
    spec: TensorSpec

    def __str__(self) -> str:
        return f"{self.who}, {self.spec.datatype.name} {self.spec.sizes}"


def declared_signature(declared: DeclaredConfig) -> Signature:
    """What an ensemble takes and gives, as its config.pbtxt says: the batch axis first where it is batched."""
    batch: tuple[Dim, ...] = (None,) if declared.max_batch_size else ()
    return Signature(
        tuple(_spec(tensor, batch) for tensor in declared.inputs),
        tuple(_spec(tensor, batch) for tensor in declared.outputs),
        {},
    )


def check(signature: Signature, steps: Sequence[DeclaredStep], models: Sequence[Signature]) -> Graph:
    """How tensors flow through an ensemble of this signature whose steps run `models`, one for each step.

    Raises LoadError where they do not: a step that does not fit its model, a tensor without a maker, with two, or that
    nobody takes, ends of different datatype or shape, steps that wait for each other.
    """
    for step, model in zip(steps, models, strict=True):
        _check_names(step, model)
    makers = _makers(signature, steps, models)
    takers = _takers(signature, steps, models)
    for tensor, taking in takers.items():
        maker = makers.get(tensor)
        if maker is None:
            raise LoadError(f"{taking[0].who} takes tensor '{tensor}', which is neither an input nor any step's output")
        for taker in taking:
            if not _agree(maker.spec, taker.spec):
                raise LoadError(f"tensor '{tensor}' differs between its ends: made by {maker}; taken by {taker}")
    for spec in signature.inputs:
        if spec.name not in takers:
            raise LoadError(f"input '{spec.name}' of the ensemble is taken by no step")
    for step in steps:
        if not set(step.outputs.values()) & set(takers):
            raise LoadError(
                f"{step} makes {sorted(step.outputs.values())}, which no step takes and the ensemble does not answer"
            )
    _check_order(signature, steps)
    return _graph(signature, steps)


def _check_names(step: DeclaredStep, model: Signature) -> None:
    inputs, outputs = [spec.name for spec in model.inputs], [spec.name for spec in model.outputs]
    for field, mapped, names in (("input_map", step.inputs, inputs), ("output_map", step.outputs, outputs)):
        unknown = sorted(set(mapped) - set(names))
        if unknown:
            raise LoadError(f"{step}: its {field} names {unknown}, the model has {names}")
    missing = [name for name in inputs if name not in step.inputs]
    if missing:
        raise LoadError(f"{step}: its input_map lacks {missing}, the model expects {inputs}")


def _makers(signature: Signature, steps: Sequence[DeclaredStep], models: Sequence[Signature]) -> Mapping[str, _End]:
    makers = {spec.name: _End(f"input '{spec.name}' of the ensemble", spec) for spec in signature.inputs}
    for step, model in zip(steps, models, strict=True):
        for spec in model.outputs:
            tensor = step.outputs.get(spec.name)
            if tensor is None:
                continue
            made = _End(f"{step} as output '{spec.name}'", spec)
            if tensor in makers:
                raise LoadError(f"tensor '{tensor}' has two makers: {makers[tensor].who} and {made.who}")
            makers[tensor] = made
    for spec in signature.outputs:
        if spec.name in {taken.name for taken in signature.inputs}:
            raise LoadError(f"output '{spec.name}' of the ensemble is its input of that name: a step is to make it")
    return makers


def _takers(
    signature: Signature, steps: Sequence[DeclaredStep], models: Sequence[Signature]
) -> Mapping[str, Sequence[_End]]:
    takers: dict[str, list[_End]] = {}
    for step, model in zip(steps, models, strict=True):
        for spec in model.inputs:
            takers.setdefault(step.inputs[spec.name], []).append(_End(f"{step} as input '{spec.name}'", spec))
    for spec in signature.outputs:
        takers.setdefault(spec.name, []).append(_End(f"output '{spec.name}' of the ensemble", spec))
    return takers


def _agree(made: TensorSpec, taken: TensorSpec) -> bool:
    """Whether one may be passed on as the other: sizes that are not fixed agree with any."""
    return (
        made.datatype is taken.datatype
        and len(made.shape) == len(taken.shape)
        and all(
            one == other or not (isinstance(one, int) and isinstance(other, int))
            for one, other in zip(made.shape, taken.shape, strict=True)
        )
    )


def _check_order(signature: Signature, steps: Sequence[DeclaredStep]) -> None:
    made = {spec.name for spec in signature.inputs}
    waiting = list(steps)
    while waiting:
        able = [step for step in waiting if made.issuperset(step.inputs.values())]
        if not able:
            raise LoadError(f"steps wait for each other's outputs, and none can begin: {', '.join(map(str, waiting))}")
        made.update(*(step.outputs.values() for step in able))
        waiting = [step for step in waiting if step not in able]


def _graph(signature: Signature, steps: Sequence[DeclaredStep]) -> Graph:
    names = [spec.name for spec in signature.inputs]
    for step in steps:
        names.extend(step.outputs.values())
    slots = {name: slot for slot, name in enumerate(names)}
    return Graph(
        tensors=tuple(names),
        outputs=tuple(slots[spec.name] for spec in signature.outputs),
        nodes=tuple(
            Node(
                str(step),
                frozenset(slots[name] for name in step.inputs.values()),
                frozenset(slots[name] for name in step.outputs.values()),
            )
            for step in steps
        ),
        inputs=len(signature.inputs),
    )


def _spec(tensor: DeclaredTensor, batch: tuple[Dim, ...]) -> TensorSpec:
    dims = (dim if dim >= 0 else None for dim in tensor.dims)
    return TensorSpec(tensor.name, BY_CONFIG[tensor.config_type], (*batch, *dims))
