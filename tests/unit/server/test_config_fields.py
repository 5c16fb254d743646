"""No field of a config.pbtxt is ignored: each is refused by name, or changes what the server understands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from inferd_protocol.model_config_pb2 import ModelConfig
from inferd_server.errors import LoadError
from inferd_server.repository.config.fields import FIELDS, Honoured, Refused, children, refuse
from inferd_server.repository.model_config import DeclaredConfig, read

PLATFORM = "onnxruntime_onnx"

FIRST = 'data_type: TYPE_FP32 dims: 4 zero_data: true name: "none"'

SETTINGS: Mapping[str, str] = {
    "response_cache.enable": "response_cache { enable: true }",
    "version_policy.latest.num_versions": "version_policy { latest { num_versions: 2 } }",
    "version_policy.all": "version_policy { all { } }",
    "version_policy.specific.versions": "version_policy { specific { versions: 3 } }",
    "max_batch_size": "max_batch_size: 5",
    "input.name": 'input { name: "x" }',
    "input.data_type": 'input { name: "x" data_type: TYPE_INT8 dims: 1 }',
    "input.dims": 'input { name: "x" data_type: TYPE_FP32 dims: 7 }',
    "input.reshape.shape": 'input { name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [2, 2] } }',
    "output.name": 'output { name: "y" }',
    "output.data_type": 'output { name: "y" data_type: TYPE_INT8 dims: 1 }',
    "output.dims": 'output { name: "y" data_type: TYPE_FP32 dims: 7 }',
    "output.reshape.shape": 'output { name: "y" data_type: TYPE_FP32 dims: 4 reshape { shape: [2, 2] } }',
    "output.label_filename": 'output { name: "y" label_filename: "labels.txt" }',
    "optimization.graph.level": "optimization { graph { level: 1 } }",
    "dynamic_batching.preferred_batch_size": "dynamic_batching { preferred_batch_size: 4 }",
    "dynamic_batching.max_queue_delay_microseconds": "dynamic_batching { max_queue_delay_microseconds: 9 }",
    "dynamic_batching.preserve_ordering": "dynamic_batching { preserve_ordering: true }",
    "dynamic_batching.default_queue_policy.default_timeout_microseconds": (
        "dynamic_batching { default_queue_policy { default_timeout_microseconds: 9 } }"
    ),
    "dynamic_batching.default_queue_policy.allow_timeout_override": (
        "dynamic_batching { default_queue_policy { allow_timeout_override: true } }"
    ),
    "dynamic_batching.default_queue_policy.max_queue_size": (
        "dynamic_batching { default_queue_policy { max_queue_size: 9 } }"
    ),
    **{
        f"ensemble_scheduling.step.{field}": (
            'input { name: "a" data_type: TYPE_FP32 dims: 1 } output { name: "b" data_type: TYPE_FP32 dims: 1 } '
            'ensemble_scheduling { step { model_name: "other" model_version: 3 '
            'input_map { key: "x" value: "a" } output_map { key: "y" value: "b" } } }'
        )
        for field in ("model_name", "model_version", "input_map", "output_map")
    },
    "instance_group.kind": "instance_group { kind: KIND_GPU }",
    "instance_group.count": "instance_group { count: 3 }",
    "default_model_filename": 'default_model_filename: "other.onnx"',
    "metric_tags": 'metric_tags { key: "a" value: "b" }',
    "parameters.string_value": 'parameters { key: "a" value { string_value: "b" } }',
    **{
        f"model_warmup.{field}": f'model_warmup {{ name: "s" {text} }}'
        for field, text in {
            "name": "",
            "batch_size": "batch_size: 2",
            "count": "count: 2",
            "inputs.data_type": 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 1 zero_data: true } }',
            "inputs.dims": 'inputs { key: "x" value { data_type: TYPE_FP32 dims: 3 zero_data: true } }',
            "inputs.zero_data": 'inputs { key: "x" value { data_type: TYPE_FP32 zero_data: true } }',
            "inputs.random_data": 'inputs { key: "x" value { data_type: TYPE_FP32 random_data: true } }',
            "inputs.input_data_file": 'inputs { key: "x" value { data_type: TYPE_FP32 input_data_file: "f" } }',
        }.items()
    },
    **{
        f"sequence_batching.{field}": f"sequence_batching {{ {text} }}"
        for field, text in {
            "oldest.max_candidate_sequences": "oldest { max_candidate_sequences: 2 }",
            "max_sequence_idle_microseconds": "max_sequence_idle_microseconds: 5",
            **{
                f"control_input.{inner}": f'control_input {{ name: "c" control {{ {control} }} }}'
                for inner, control in {
                    "name": "bool_false_true: [false, true]",
                    "control.kind": "kind: CONTROL_SEQUENCE_END bool_false_true: [false, true]",
                    "control.int32_false_true": "int32_false_true: [0, 1]",
                    "control.fp32_false_true": "fp32_false_true: [0, 1]",
                    "control.bool_false_true": "bool_false_true: [false, true]",
                    "control.data_type": "kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT32",
                }.items()
            },
            **{
                f"state.{inner}": f"state {{ {state} data_type: TYPE_FP32 {rest} }}"
                for inner, state, rest in (
                    ("input_name", 'input_name: "h"', ""),
                    ("output_name", 'output_name: "h"', ""),
                    ("data_type", 'input_name: "h"', ""),
                    ("dims", "dims: 4", ""),
                    *(
                        (f"initial_state.{last}", "dims: 4", f"initial_state {{ {FIRST} }}")
                        for last in ("data_type", "dims", "zero_data", "name")
                    ),
                )
            },
        }.items()
    },
}
"""For every honoured field without fields of its own that are honoured: a text that sets it to what is no default."""

CHECKED = {"name": 'name: "other"', "platform": 'platform: "other"', "backend": 'backend: "other"'}
"""Fields that change nothing, since only one value of each is right."""


def every_field(message: Descriptor, prefix: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    for field in message.fields:
        yield prefix + field.name, field
        inner = children(field)
        if inner is not None:
            yield from every_field(inner, f"{prefix}{field.name}.")


ALL = dict(every_field(ModelConfig.DESCRIPTOR))


def verdict(path: str) -> Honoured | Refused | None:
    """The field's own, or that of the refused message which it is in."""
    parts = path.split(".")
    for length in range(1, len(parts) + 1):
        found = FIELDS.get(".".join(parts[:length]))
        if found is None or isinstance(found, Refused):
            return found
    return found


def put(message: Message, path: list[str]) -> None:
    """Sets one field, and with it the messages that it is in."""
    field = message.DESCRIPTOR.fields_by_name[path[0]]
    target = getattr(message, field.name)
    inner = children(field)
    if inner is not None:
        if field.message_type.GetOptions().map_entry:
            key = "key" if field.message_type.fields_by_name["key"].cpp_type == FieldDescriptor.CPPTYPE_STRING else 1
            within = target[key]
        elif isinstance(target, Message):
            target.SetInParent()
            within = target
        else:
            within = target.add()
        if path[1:]:
            put(within, path[1:])
    elif field.message_type is not None:
        target["key"] = "value"
    else:
        value = "text" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else 1
        if isinstance(getattr(type(message)(), field.name), (bool, int, float, str)):
            setattr(message, field.name, value)
        else:
            target.append(value)


@pytest.mark.parametrize("path", ALL)
def test_every_field_is_honoured_or_refused(path: str) -> None:
    assert verdict(path) is not None, f"{path} is in the message, and fields.py says nothing of it"


@pytest.mark.parametrize("path", ALL)
def test_what_is_refused_is_refused_by_its_name_wherever_it_is_set(path: str) -> None:
    message = ModelConfig()
    put(message, path.split("."))
    found = verdict(path)
    if isinstance(found, Honoured):
        refuse("config.pbtxt", message)
        return
    with pytest.raises(LoadError) as caught:
        refuse("config.pbtxt", message)
    (named,) = (entry for entry in FIELDS if FIELDS[entry] is found and (path == entry or path.startswith(f"{entry}.")))
    assert f"config.pbtxt sets {named}, " in str(caught.value)
    assert str(caught.value).endswith(": take it out")


def test_a_field_without_a_verdict_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    less = {path: each for path, each in FIELDS.items() if path != "instance_group.count"}
    monkeypatch.setattr("inferd_server.repository.config.fields.FIELDS", less)
    message = ModelConfig()
    put(message, ["instance_group", "count"])
    with pytest.raises(LoadError, match=r"sets instance_group\.count, and this server does not know it: take it out"):
        refuse("config.pbtxt", message)


def test_the_table_names_nothing_else() -> None:
    assert set(FIELDS) <= set(ALL)
    assert not [path for path in FIELDS if "." in path and isinstance(verdict(path.rpartition(".")[0]), Refused)]


def test_every_honoured_field_has_a_test_here() -> None:
    leaves = {
        path
        for path, each in FIELDS.items()
        if isinstance(each, Honoured) and not any(other.startswith(f"{path}.") for other in FIELDS)
    }
    assert set(SETTINGS) | set(CHECKED) == leaves


@pytest.mark.parametrize("path", SETTINGS)
def test_what_is_honoured_changes_what_is_understood(tmp_path: Path, path: str) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    text = SETTINGS[path]
    field = path.rpartition(".")[2]
    assert f"{field}" in text
    assert understood(tmp_path, text) != understood(tmp_path, "")
    message = text_format.Parse(text, ModelConfig())
    clear(message, path.split("."))
    try:
        without = understood(tmp_path, text_format.MessageToString(message))
    except LoadError:
        return
    assert without != understood(tmp_path, text)


@pytest.mark.parametrize("path", CHECKED)
def test_what_is_checked_is_checked(tmp_path: Path, path: str) -> None:
    with pytest.raises(LoadError, match=f"says {path}: 'other'"):
        understood(tmp_path, CHECKED[path])


def test_docs_name_every_field() -> None:
    text = (Path(__file__).parents[3] / "docs" / "config.md").read_text()
    for path in ALL:
        top = path
        while f"| `{top}` |" not in text:
            top = top.rpartition(".")[0]
            assert top, f"docs/config.md says nothing of {path}: run `make docs`"
        inner = path[len(top) + 1 :]
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{top}` |"))
        assert not inner or f"`{inner}`" in row, f"docs/config.md says nothing of {path}: run `make docs`"


def understood(folder: Path, text: str) -> DeclaredConfig:
    """Without the message itself, which of course differs."""
    path = folder / "config.pbtxt"
    path.write_text(text)
    return replace(read(path, "m", PLATFORM), message=ModelConfig())


def clear(message: Message, path: list[str]) -> None:
    if not path[1:]:
        message.ClearField(path[0])  # type: ignore[arg-type]
        return
    field = message.DESCRIPTOR.fields_by_name[path[0]]
    target = getattr(message, path[0])
    if field.message_type.GetOptions().map_entry:
        targets = list(target.values())
    else:
        targets = [target] if isinstance(target, Message) else list(target)
    for each in targets:
        clear(each, path[1:])
