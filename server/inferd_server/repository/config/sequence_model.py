"""Declared sequences, held against the inputs and outputs that the model has.

State and controls are tensors of the model that callers neither send nor get: the state is kept by the server from
request to request, the controls say where in its sequence one is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from inferd_protocol.datatypes import BY_CONFIG, BYTES
from inferd_protocol.tensors import Tensor

from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredConfig, DeclaredFlag, DeclaredId, DeclaredState
from inferd_server.repository.config.effective import ModelConfig
from inferd_server.runtime.backend import Dim, Signature, TensorSpec
from inferd_server.scheduling.sequence import CorrelationId, Flag, SequenceModel, State


def sequence_model(
    signature: Signature, declared: DeclaredConfig, config: ModelConfig, max_sequences: int
) -> SequenceModel | None:
    """How the sequences of a model are kept, None where it keeps none.

    `signature` is the model's in the shapes that are declared. `max_sequences` holds where the configuration sets no
    bound of its own. Raises LoadError where what is declared contradicts the model.
    """
    sequences = declared.sequences
    if sequences is None:
        return None
    model = _Model(declared.source, signature, config.batched)
    states = [model.state(state) for state in sequences.states]
    flags = [model.flag(flag) for flag in sequences.flags]
    ids = [model.id(control) for control in sequences.ids]
    own = {place for kind, place in model.taken if kind == "input"}
    for tensor in declared.inputs:
        if any(signature.inputs[place].name == tensor.name for place in own):
            raise LoadError(
                f"{declared.source} declares '{tensor.name}' as an input and in sequence_batching: expected one of "
                "them, since callers do not send what the server fills in"
            )
    hidden = {state.output for state in states}
    shown = {tensor.name for tensor in declared.outputs}
    inputs = tuple(place for place in range(len(signature.inputs)) if place not in own)
    outputs = tuple(place for place, spec in enumerate(signature.outputs) if place not in hidden or spec.name in shown)
    if not inputs:
        raise LoadError(f"{declared.source}, sequence_batching takes every input: expected one for callers to send")
    return SequenceModel(
        inputs=inputs,
        outputs=outputs,
        signature=Signature(
            tuple(signature.inputs[place] for place in inputs),
            tuple(signature.outputs[place] for place in outputs),
            signature.metadata,
        ),
        states=tuple(states),
        flags=tuple(flags),
        ids=tuple(ids),
        dtypes=tuple(spec.datatype.numpy for spec in signature.inputs),
        idle_ns=sequences.idle_microseconds * 1000,
        max_sequences=sequences.max_sequences or max_sequences,
    )


class _Model:
    """A signature to hold declarations against. Each tensor may be taken once."""

    def __init__(self, source: str, signature: Signature, batched: bool) -> None:
        self.taken: set[tuple[str, int]] = set()
        """Kind and place of the tensors that were asked for."""
        self._source = source
        self._specs = {"input": signature.inputs, "output": signature.outputs}
        self._batched = batched

    def state(self, declared: DeclaredState) -> State:
        """A state. Raises LoadError where the model has no such input and output."""
        ends = [("input", declared.input), ("output", declared.output)]
        places = [self._take("state", kind, name, declared.config_type) for kind, name in ends]
        specs = [self._specs[kind][place] for (kind, _), place in zip(ends, places, strict=True)]
        sizes = [self._dims(spec) for spec in specs]
        for (kind, name), dims in zip(ends, sizes, strict=True):
            agree = len(dims) == len(declared.dims) and all(
                asked >= -1 and (not isinstance(dim, int) or asked in (-1, dim))
                for dim, asked in zip(dims, declared.dims, strict=True)
            )
            if not agree:
                raise LoadError(
                    f"{self._source} declares state {kind} '{name}' with dims {list(declared.dims)}, "
                    f"the model has {_plain(dims)}{self._without()}"
                )
        if any(
            isinstance(one, int) and isinstance(other, int) and one != other for one, other in zip(*sizes, strict=True)
        ):
            raise LoadError(
                f"{self._source} declares a state of input '{declared.input}', which is {_plain(sizes[0])}, and output "
                f"'{declared.output}', which is {_plain(sizes[1])}{self._without()}: expected equal sizes"
            )
        # An axis of any size begins with 1, as in Triton, where neither the model nor the file says another one.
        first = [
            asked if asked >= 0 else next((dim for dim in both if isinstance(dim, int)), 1)
            for asked, *both in zip(declared.first_dims, *sizes, strict=True)
        ]
        named = f" '{declared.first_name}'" if declared.first_name else ""
        for dim, size in zip(sizes[0], first, strict=True):
            if isinstance(dim, int) and dim != size:
                raise LoadError(
                    f"{self._source} declares an initial_state{named} of dims {first} for '{declared.input}', "
                    f"the model has {_plain(sizes[0])}{self._without()}"
                )
        return State(places[0], places[1], _filled(specs[0], self._shape(first), 0))

    def flag(self, declared: DeclaredFlag) -> Flag:
        """A control of two values. Raises LoadError where the model has no such input."""
        place = self._take("control", "input", declared.input, declared.config_type)
        spec = self._specs["input"][place]
        shape = self._one(spec)
        return Flag(place, declared.kind, _filled(spec, shape, declared.false), _filled(spec, shape, declared.true))

    def id(self, declared: DeclaredId) -> CorrelationId:
        """The control that carries the id. Raises LoadError where the model has no such input."""
        place = self._take("control", "input", declared.input, declared.config_type)
        spec = self._specs["input"][place]
        return CorrelationId(place, spec.datatype.numpy, self._one(spec))

    def _take(self, what: str, kind: str, name: str, config_type: str) -> int:
        names = [spec.name for spec in self._specs[kind]]
        if name not in names:
            raise LoadError(f"{self._source} declares {what} {kind} '{name}', the model has {sorted(names)}")
        place = names.index(name)
        if (kind, place) in self.taken:
            raise LoadError(f"{self._source}, sequence_batching declares {kind} '{name}' twice: expected once")
        self.taken.add((kind, place))
        spec = self._specs[kind][place]
        if BY_CONFIG.get(config_type) is not spec.datatype:
            raise LoadError(
                f"{self._source} declares {what} {kind} '{name}' as {config_type}, the model has {spec.datatype.config}"
            )
        return place

    def _one(self, spec: TensorSpec) -> tuple[int, ...]:
        """The shape of a control for one request: one element."""
        dims = self._dims(spec)
        if any(isinstance(dim, int) and dim != 1 for dim in dims):
            raise LoadError(
                f"{self._source} declares control input '{spec.name}', which is {_plain(dims)} in the model"
                f"{self._without()}: expected one element"
            )
        return self._shape([1] * len(dims))

    def _dims(self, spec: TensorSpec) -> tuple[Dim, ...]:
        return spec.shape[1:] if self._batched else spec.shape

    def _shape(self, dims: Sequence[int]) -> tuple[int, ...]:
        return (1, *dims) if self._batched else tuple(dims)

    def _without(self) -> str:
        return " (without the batch axis)" if self._batched else ""


def _plain(dims: Sequence[Dim]) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in dims]


def _filled(spec: TensorSpec, shape: tuple[int, ...], value: float) -> Tensor:
    return np.full(shape, b"" if spec.datatype is BYTES else value, spec.datatype.numpy)
