"""sequence_batching: what a config.pbtxt says of it, checked as far as that can be done without the model."""

from __future__ import annotations

from inferd_protocol import model_config_pb2 as pb

from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredFlag, DeclaredId, DeclaredSequences, DeclaredState
from inferd_server.repository.config.values import data_type

_Batching = pb.ModelSequenceBatching
_DEFAULT_IDLE_MICROSECONDS = 1_000_000
_KINDS = {
    _Batching.Control.CONTROL_SEQUENCE_START: "start",
    _Batching.Control.CONTROL_SEQUENCE_END: "end",
    _Batching.Control.CONTROL_SEQUENCE_READY: "ready",
    _Batching.Control.CONTROL_SEQUENCE_CORRID: "corrid",
}
_FLAG_TYPES = {"int32_false_true": "TYPE_INT32", "fp32_false_true": "TYPE_FP32", "bool_false_true": "TYPE_BOOL"}
_ID_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")


def sequence_batching(source: str, message: pb.ModelConfig) -> DeclaredSequences | None:
    """What is said of sequences, None where nothing is. How it goes with the model is for `sequence_model` to say.

    Raises LoadError where it contradicts itself or the rest of the file.
    """
    if not message.HasField("sequence_batching"):
        return None
    batching = message.sequence_batching
    where = f"{source}, sequence_batching"
    if message.response_cache.enable:
        raise LoadError(
            f"{source} sets response_cache beside sequence_batching, and what a request of a sequence gives depends on "
            "those before it: take one of them out"
        )
    controls = [_control(where, control) for control in batching.control_input]
    flags = tuple(control for control in controls if isinstance(control, DeclaredFlag))
    ids = tuple(control for control in controls if isinstance(control, DeclaredId))
    kinds = [flag.kind for flag in flags] + ["corrid"] * len(ids)
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise LoadError(f"{where} has two inputs for CONTROL_SEQUENCE_{kind.upper()}: expected one")
    return DeclaredSequences(
        idle_microseconds=batching.max_sequence_idle_microseconds or _DEFAULT_IDLE_MICROSECONDS,
        max_sequences=_max_sequences(where, batching),
        states=tuple(_state(where, state) for state in batching.state),
        flags=flags,
        ids=ids,
    )


def _max_sequences(where: str, batching: _Batching) -> int | None:
    most = batching.oldest.max_candidate_sequences
    if most < 0:
        raise LoadError(f"{where} says max_candidate_sequences: {most}, expected 1 or more")
    return most or None


def _state(where: str, state: _Batching.State) -> DeclaredState:
    where = f"{where}, state '{state.input_name}'"
    config_type = data_type(f"{where} has", state.data_type)
    dims = tuple(state.dims)
    first, first_name = dims, ""
    if len(state.initial_state) > 1:
        raise LoadError(f"{where} has {len(state.initial_state)} times initial_state: expected one")
    for initial in state.initial_state:
        if initial.data_type != state.data_type:
            raise LoadError(
                f"{where} is {config_type} and its initial_state "
                f"{data_type(f'{where} has an initial_state of', initial.data_type)}: expected the same"
            )
        first, first_name = tuple(initial.dims), initial.name
        if len(first) != len(dims) or any(
            size < 0 or dim not in (-1, size) for dim, size in zip(dims, first, strict=True)
        ):
            raise LoadError(
                f"{where} has dims {list(dims)} and its initial_state {list(first)}: expected the same, with a size "
                "in place of each -1"
            )
        if initial.WhichOneof("state_data") is None:
            raise LoadError(f"{where} has an initial_state without values: expected zero_data: true")
    return DeclaredState(state.input_name, state.output_name, config_type, dims, first, first_name)


def _control(where: str, control_input: _Batching.ControlInput) -> DeclaredFlag | DeclaredId:
    name = control_input.name
    where = f"{where}, control_input '{name}'"
    if len(control_input.control) != 1:
        raise LoadError(f"{where} has {len(control_input.control)} controls: expected one")
    control = control_input.control[0]
    values = {field: list(getattr(control, field)) for field in _FLAG_TYPES if getattr(control, field)}
    kind = _KINDS.get(control.kind)
    if kind is None:
        raise LoadError(f"{where} says kind: {control.kind}, expected from 0 to {max(_KINDS)}")
    if kind == "corrid":
        if values:
            raise LoadError(f"{where} sets {', '.join(values)}: CONTROL_SEQUENCE_CORRID expects a data_type alone")
        config_type = data_type(f"{where} has", control.data_type)
        if config_type not in _ID_TYPES:
            raise LoadError(f"{where} is {config_type}: expected one of {', '.join(_ID_TYPES)}")
        return DeclaredId(name, config_type)
    if control.data_type:
        raise LoadError(f"{where} has a data_type, which only CONTROL_SEQUENCE_CORRID has: take it out")
    if len(values) != 1 or any(len(pair) != 2 for pair in values.values()):
        raise LoadError(f"{where} is expected to have two values in one of {', '.join(_FLAG_TYPES)}")
    field, (false, true) = values.popitem()
    return DeclaredFlag(name, kind, _FLAG_TYPES[field], false, true)
