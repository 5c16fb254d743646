from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.repository.model_config import DeclaredConfig, ModelConfig, read, read_json, sequence_model
from inferd_server.runtime.backend import Dim, Signature, TensorSpec
from inferd_server.scheduling.sequence import SequenceModel

PLATFORM = "onnxruntime_onnx"


def spec(name: str, datatype: str, *shape: Dim) -> TensorSpec:
    return TensorSpec(name, BY_NAME[datatype], shape)


SIGNATURE = Signature(
    (
        spec("h", "FP32", "batch", 4),
        spec("start", "INT32", "batch", 1),
        spec("x", "FP32", "batch", 3),
        spec("kept", "INT64", "batch", "length", 2),
        spec("name", "BYTES", "batch"),
        spec("words", "BYTES", "batch", 2),
    ),
    (
        spec("next_h", "FP32", "batch", 4),
        spec("y", "FP32", "batch", 1),
        spec("next_kept", "INT64", "batch", "longer", 2),
        spec("wide", "FP32", "batch", 5),
        spec("next_words", "BYTES", "batch", 2),
    ),
    {"a": "b"},
)
H = 'input_name: "h" output_name: "next_h" data_type: TYPE_FP32'
KEPT = 'input_name: "kept" output_name: "next_kept" data_type: TYPE_INT64'
START = "kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ]"


def state(text: str) -> str:
    return f"state {{ {text} }}"


def control(name: str, *texts: str) -> str:
    controls = " ".join(f"control {{ {text} }}" for text in texts)
    return f'control_input {{ name: "{name}" {controls} }}'


def declared(tmp_path: Path, batching: str, rest: str = "") -> DeclaredConfig:
    path = tmp_path / "config.pbtxt"
    path.write_text(f"{rest} sequence_batching {{ {batching} }}")
    found = read(path, "m", PLATFORM)
    assert found.sequences is not None
    return found


def served(*, batched: bool = True) -> ModelConfig:
    server = ServerConfig(model_repository=Path())
    return ModelConfig(4 if batched else 0, server.max_request_rows, 1, 1, 0, 1)


def resolved(tmp_path: Path, batching: str, rest: str = "", *, batched: bool = True) -> SequenceModel:
    found = sequence_model(SIGNATURE, declared(tmp_path, batching, rest), served(batched=batched), 9)
    assert found is not None
    return found


def names(specs: tuple[TensorSpec, ...]) -> list[str]:
    return [each.name for each in specs]


def test_a_model_without_it_keeps_no_sequences() -> None:
    assert read(None, "m", PLATFORM).sequences is None
    assert read_json("{}", Path(), "m", PLATFORM).sequences is None


def test_what_it_says_is_honoured(tmp_path: Path) -> None:
    text = state(f"{H} dims: [ 4 ]") + control("start", START)
    corrid = control("name", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING")
    model = resolved(
        tmp_path,
        f"max_sequence_idle_microseconds: 5 oldest {{ max_candidate_sequences: 3 }} {text} {corrid}",
        'output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }',
    )
    assert (model.idle_ns, model.max_sequences) == (5000, 3)
    assert names(model.signature.inputs) == ["x", "kept", "words"]
    assert names(model.signature.outputs) == ["y", "next_kept", "wide", "next_words"]
    assert model.signature.metadata == {"a": "b"}
    assert (model.inputs, model.outputs) == ((2, 3, 5), (1, 2, 3, 4))
    assert (model.states[0].input, model.states[0].output) == (0, 0)
    assert model.states[0].initial.tolist() == [[0, 0, 0, 0]]
    assert model.states[0].initial.dtype == np.float32
    assert (model.flags[0].kind, model.flags[0].false.tolist(), model.flags[0].true.tolist()) == ("start", [[0]], [[1]])
    assert (model.ids[0].dtype, model.ids[0].shape) == (np.dtype(object), (1,))


@pytest.mark.parametrize("strategy", ["", "direct {}", "oldest {}"])
def test_what_it_does_not_say(tmp_path: Path, strategy: str) -> None:
    model = resolved(tmp_path, strategy)
    assert (model.idle_ns, model.max_sequences) == (10**9, 9)
    assert model.signature.inputs == SIGNATURE.inputs
    assert model.signature.outputs == SIGNATURE.outputs


def test_a_state_among_the_declared_outputs_is_answered(tmp_path: Path) -> None:
    outputs = 'output { name: "next_h" data_type: TYPE_FP32 dims: [ 4 ] }'
    assert names(resolved(tmp_path, state(f"{H} dims: [ 4 ]"), outputs).signature.outputs)[0] == "next_h"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (f"{H} dims: [ -1 ]", (1, 4)),
        (f"{KEPT} dims: [ -1, 2 ]", (1, 1, 2)),
        (f"{KEPT} dims: [ 7, -1 ]", (1, 7, 2)),
        (f"{KEPT} dims: [ -1, 2 ] initial_state {{ data_type: TYPE_INT64 dims: [ 0, 2 ] zero_data: true }}", (1, 0, 2)),
        ('input_name: "words" output_name: "next_words" data_type: TYPE_STRING dims: [ 2 ]', (1, 2)),
    ],
)
def test_what_a_sequence_begins_with(tmp_path: Path, text: str, shape: tuple[int, ...]) -> None:
    initial = resolved(tmp_path, state(text)).begin()[0]
    assert initial.shape == shape
    assert set(initial.ravel().tolist()) <= {0, b""}


def test_without_a_batch_axis_dims_are_the_models(tmp_path: Path) -> None:
    text = state(f"{H} dims: [ 1, 4 ]") + control("start", START)
    model = resolved(tmp_path, text, batched=False)
    assert model.states[0].initial.shape == (1, 4)
    assert model.flags[0].true.shape == (1, 1)


def initial(text: str) -> str:
    return state(f"{H} dims: [ 4 ] initial_state {{ {text} }}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("iterative_sequence: true", r"sets sequence_batching\.iterative_sequence, and"),
        ("direct { minimum_slot_utilization: 0.5 }", r"sets sequence_batching\.direct\.minimum_slot_utilization, and"),
        ("direct { max_queue_delay_microseconds: 1 }", r"direct\.max_queue_delay_microseconds, and"),
        ("oldest { preferred_batch_size: [ 4 ] }", r"oldest\.preferred_batch_size, and"),
        ("oldest { preserve_ordering: true }", r"oldest\.preserve_ordering, and"),
        ("oldest { max_candidate_sequences: -1 }", "max_candidate_sequences: -1, expected 1 or more"),
        (
            state(f"{H} dims: [ 4 ] use_same_buffer_for_input_output: true"),
            r"state\.use_same_buffer_for_input_output, and",
        ),
        (state(f"{H} dims: [ 4 ] use_growable_memory: true"), r"state\.use_growable_memory, and"),
        (initial('data_type: TYPE_FP32 dims: [ 4 ] data_file: "f"'), r"state\.initial_state\.data_file, and"),
        (
            initial("data_type: TYPE_FP32 dims: [ 4 ]"),
            "state 'h' has an initial_state without values: expected zero_data",
        ),
        (initial("dims: [ 4 ]"), "has an initial_state of data_type TYPE_INVALID: expected one of"),
        (state('input_name: "h"'), "state 'h' has data_type TYPE_INVALID: expected one of"),
        (control("x", "kind: 9"), "control_input 'x' says kind: 9, expected from 0 to 3"),
        (initial("data_type: TYPE_INT32 dims: [ 4 ]"), "is TYPE_FP32 and its initial_state TYPE_INT32: expected"),
        (initial("data_type: TYPE_FP32 dims: [ 5 ]"), r"dims \[4\] and its initial_state \[5\]: expected the same"),
        (
            state(f"{KEPT} dims: [ -1, 2 ] initial_state {{ data_type: TYPE_INT64 dims: [ -1, 2 ] }}"),
            "with a size in place of each -1",
        ),
        (initial("data_type: TYPE_FP32 dims: [ 4 ] } initial_state { data_type: TYPE_FP32"), "2 times initial_state"),
        (control("start"), "control_input 'start' has 0 controls: expected one"),
        (control("start", START, START), "has 2 controls: expected one"),
        (control("start", "kind: CONTROL_SEQUENCE_START"), "two values in one of int32_false_true, fp32_false_true"),
        (control("start", "int32_false_true: [ 0 ]"), "two values in one of"),
        (control("start", "int32_false_true: [ 0, 1 ] fp32_false_true: [ 0, 1 ]"), "two values in one of"),
        (control("start", f"{START} data_type: TYPE_INT32"), "has a data_type, which only CONTROL_SEQUENCE_CORRID has"),
        (
            control("start", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_FP32"),
            "is TYPE_FP32: expected one of TYPE_U",
        ),
        (
            control("start", "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT32 int32_false_true: [ 0, 1 ]"),
            "sets int32_false_true: CONTROL_SEQUENCE_CORRID expects a data_type alone",
        ),
        (control("start", START) + control("x", START), "two inputs for CONTROL_SEQUENCE_START: expected one"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(LoadError, match=why):
        declared(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            state('input_name: "z" output_name: "next_h" data_type: TYPE_FP32'),
            r"state input 'z', the model has \['h', 'kept', 'name'",
        ),
        (state('input_name: "h" output_name: "z" data_type: TYPE_FP32'), r"state output 'z', the model has \['next_h'"),
        (state(f"{H.replace('FP32', 'FP16')} dims: [ 4 ]"), "state input 'h' as TYPE_FP16, the model has TYPE_FP32"),
        (state(f"{H} dims: [ 5 ]"), r"state input 'h' with dims \[5\], the model has \[4\] \(without the batch axis\)"),
        (state(f"{H} dims: [ -2 ]"), r"state input 'h' with dims \[-2\]"),
        (
            state('input_name: "h" output_name: "wide" data_type: TYPE_FP32 dims: [ -1 ]'),
            r"input 'h', which is \[4\], and output 'wide', which is \[5\] \(without the batch axis\): expected equal",
        ),
        (
            state(f"{H} dims: [ -1 ] initial_state {{ data_type: TYPE_FP32 dims: [ 5 ] zero_data: true name: 'i' }}"),
            r"initial_state 'i' of dims \[5\] for 'h', the model has \[4\]",
        ),
        (state(f"{H} dims: [ 4 ]") + state(f"{H} dims: [ 4 ]"), "declares input 'h' twice: expected once"),
        (control("y", START), r"control input 'y', the model has"),
        (control("x", START), "control input 'x' as TYPE_INT32, the model has TYPE_FP32"),
        (
            control("x", "fp32_false_true: [ 0, 1 ]"),
            r"control input 'x', which is \[3\] in the model \(without the batch axis\): expected one element",
        ),
    ],
)
def test_what_contradicts_the_model_is_refused_with_both_sides(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(LoadError, match=why):
        resolved(tmp_path, text)


def test_an_input_is_the_callers_or_the_servers(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="declares 'h' as an input and in sequence_batching: expected one of them"):
        resolved(tmp_path, state(f"{H} dims: [ 4 ]"), 'input { name: "h" data_type: TYPE_FP32 dims: [ 4 ] }')


def test_something_is_left_to_send(tmp_path: Path) -> None:
    lone = Signature((SIGNATURE.inputs[1],), SIGNATURE.outputs, {})
    with pytest.raises(LoadError, match="takes every input: expected one for callers to send"):
        sequence_model(lone, declared(tmp_path, control("start", START)), served(), 1)
