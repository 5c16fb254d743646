"""`sequence_batching` of a config.pbtxt: read, and held against the model it is for.

As everywhere, a field is honoured or refused by name. State and controls are tensors of the model that callers neither
send nor get: the state is kept by the server from request to request, the controls say where in its sequence one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from inferd_protocol import model_config_pb2
from inferd_protocol.datatypes import BY_CONFIG, BYTES
from inferd_protocol.tensors import Tensor

from inferd_server.errors import LoadError
from inferd_server.runtime.backend import Dim, Signature, TensorSpec
from inferd_server.scheduling.sequence import CorrelationId, Flag, SequenceModel, State

_Batching = model_config_pb2.ModelSequenceBatching
_DEFAULT_IDLE_MICROSECONDS = 1_000_000
_FLAGS = {
    _Batching.Control.CONTROL_SEQUENCE_START: "start",
    _Batching.Control.CONTROL_SEQUENCE_END: "end",
    _Batching.Control.CONTROL_SEQUENCE_READY: "ready",
}
_FLAG_TYPES = {"int32_false_true": "TYPE_INT32", "fp32_false_true": "TYPE_FP32", "bool_false_true": "TYPE_BOOL"}
_ID_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")


@dataclass(frozen=True, slots=True)
class DeclaredState:
    """A state: `dims` without the batch axis, -1 for any size; `first_dims` are those it begins with."""

    input: str
    output: str
    config_type: str
    dims: tuple[int, ...]
    first_dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeclaredFlag:
    """A control of two values: `kind` is `start`, `end` or `ready`."""

    input: str
    kind: str
    config_type: str
    false: float
    true: float


@dataclass(frozen=True, slots=True)
class DeclaredId:
    """The control that carries the sequence's id."""

    input: str
    config_type: str


@dataclass(frozen=True, slots=True)
class DeclaredSequences:
    """What `sequence_batching` says. `max_sequences` is None where it does not."""

    source: str
    idle_microseconds: int
    max_sequences: int | None
    states: tuple[DeclaredState, ...]
    flags: tuple[DeclaredFlag, ...]
    ids: tuple[DeclaredId, ...]
    inputs: tuple[str, ...]
    """The inputs that the file declares as its callers'."""
    outputs: tuple[str, ...]


def read(source: str, message: model_config_pb2.ModelConfig) -> DeclaredSequences | None:
    """Reads the `sequence_batching` of a configuration, None where it has none.

    Raises LoadError where it contradicts itself, or sets what is not honoured.
    """
    if not message.HasField("sequence_batching"):
        return None
    batching = message.sequence_batching
    where = f"{source}, sequence_batching"
    if batching.iterative_sequence:
        raise _refused(where, "iterative_sequence")
    controls = [_control(where, control) for control in batching.control_input]
    flags = tuple(control for control in controls if isinstance(control, DeclaredFlag))
    ids = tuple(control for control in controls if isinstance(control, DeclaredId))
    kinds = [flag.kind for flag in flags] + ["corrid"] * len(ids)
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise LoadError(f"{where} has two inputs for CONTROL_SEQUENCE_{kind.upper()}: expected one")
    return DeclaredSequences(
        source=source,
        idle_microseconds=batching.max_sequence_idle_microseconds or _DEFAULT_IDLE_MICROSECONDS,
        max_sequences=_max_sequences(where, batching),
        states=tuple(_state(where, state) for state in batching.state),
        flags=flags,
        ids=ids,
        inputs=tuple(tensor.name for tensor in message.input),
        outputs=tuple(tensor.name for tensor in message.output),
    )


def resolve(signature: Signature, declared: DeclaredSequences, *, batched: bool, max_sequences: int) -> SequenceModel:
    """How the sequences of a model are kept. `max_sequences` holds where the configuration sets no bound of its own.

    Raises LoadError where what is declared contradicts the model.
    """
    model = _Model(declared.source, signature, batched)
    states = [model.state(state) for state in declared.states]
    flags = [model.flag(flag) for flag in declared.flags]
    ids = [model.id(control) for control in declared.ids]
    own = {place for kind, place in model.taken if kind == "input"}
    for name in declared.inputs:
        if any(signature.inputs[place].name == name for place in own):
            raise LoadError(
                f"{declared.source} declares '{name}' as an input and in sequence_batching: expected one of them, "
                "since callers do not send what the server fills in"
            )
    state_outputs = {state.output for state in states}
    inputs = tuple(place for place in range(len(signature.inputs)) if place not in own)
    outputs = tuple(
        place
        for place, spec in enumerate(signature.outputs)
        if place not in state_outputs or spec.name in declared.outputs
    )
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
        idle_ns=declared.idle_microseconds * 1000,
        max_sequences=declared.max_sequences or max_sequences,
    )


def _refused(where: str, field: str) -> LoadError:
    return LoadError(f"{where} sets {field}, which this server does not have: take it out")


def _max_sequences(where: str, batching: _Batching) -> int | None:
    match batching.WhichOneof("strategy_choice"):
        case "direct":
            # Its promise, the same slot of the same instance, is one to models that keep state in themselves.
            for descriptor, _ in batching.direct.ListFields():
                raise _refused(f"{where}, direct", descriptor.name)
        case "oldest":
            for descriptor, _ in batching.oldest.ListFields():
                if descriptor.name != "max_candidate_sequences":
                    raise _refused(f"{where}, oldest", descriptor.name)
            most = batching.oldest.max_candidate_sequences
            if most < 0:
                raise LoadError(f"{where} says max_candidate_sequences: {most}, expected 1 or more")
            return most or None
    return None


def _state(where: str, state: _Batching.State) -> DeclaredState:
    where = f"{where}, state '{state.input_name}'"
    for field in ("use_same_buffer_for_input_output", "use_growable_memory"):
        if getattr(state, field):
            raise _refused(where, field)
    dims = tuple(state.dims)
    first = dims
    if len(state.initial_state) > 1:
        raise LoadError(f"{where} has {len(state.initial_state)} times initial_state: expected one")
    for initial in state.initial_state:
        if initial.WhichOneof("state_data") == "data_file":
            raise _refused(where, "data_file")
        if initial.data_type != state.data_type:
            raise LoadError(
                f"{where} is {_type(state.data_type)} and its initial_state {_type(initial.data_type)}: "
                "expected the same"
            )
        first = tuple(initial.dims)
        if len(first) != len(dims) or any(
            size < 0 or dim not in (-1, size) for dim, size in zip(dims, first, strict=True)
        ):
            raise LoadError(
                f"{where} has dims {list(dims)} and its initial_state {list(first)}: expected the same, with a size "
                "in place of each -1"
            )
    return DeclaredState(state.input_name, state.output_name, _type(state.data_type), dims, first)


def _control(where: str, control_input: _Batching.ControlInput) -> DeclaredFlag | DeclaredId:
    name = control_input.name
    where = f"{where}, control_input '{name}'"
    if len(control_input.control) != 1:
        raise LoadError(f"{where} has {len(control_input.control)} controls: expected one")
    control = control_input.control[0]
    values = {field: list(getattr(control, field)) for field in _FLAG_TYPES if getattr(control, field)}
    kind = _FLAGS.get(control.kind)
    if kind is None:
        if values:
            raise LoadError(f"{where} sets {', '.join(values)}: CONTROL_SEQUENCE_CORRID expects a data_type alone")
        if _type(control.data_type) not in _ID_TYPES:
            raise LoadError(f"{where} is {_type(control.data_type)}: expected one of {', '.join(_ID_TYPES)}")
        return DeclaredId(name, _type(control.data_type))
    if control.data_type:
        raise LoadError(f"{where} has a data_type, which only CONTROL_SEQUENCE_CORRID has: take it out")
    if len(values) != 1 or any(len(pair) != 2 for pair in values.values()):
        raise LoadError(f"{where} is expected to have two values in one of {', '.join(_FLAG_TYPES)}")
    field, (false, true) = values.popitem()
    return DeclaredFlag(name, kind, _FLAG_TYPES[field], false, true)


def _type(value: model_config_pb2.DataType) -> str:
    return model_config_pb2.DataType.Name(value)


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
        for dim, size in zip(sizes[0], first, strict=True):
            if isinstance(dim, int) and dim != size:
                raise LoadError(
                    f"{self._source} declares an initial_state of dims {first} for '{declared.input}', "
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
