"""What a config.pbtxt makes of a real model: shapes, labels, warm-up requests, settings of the runtime."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import pytest
from google.protobuf import json_format, text_format
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from inferd_protocol.model_config_pb2 import ModelConfig as Message
from inferd_protocol.tensors import encode_raw
from inferd_server.config import Device, ServerConfig
from inferd_server.errors import LoadError, RuntimeFailure
from inferd_server.repository.loader import load
from inferd_server.repository.model_config import DeclaredConfig, configuration, read, read_json
from inferd_server.repository.response_cache import ResponseCache
from inferd_server.repository.servable import Servable
from inferd_server.repository.table import ModelTable
from inferd_server.runtime import onnxruntime_backend
from inferd_server.runtime.backend import GraphLevel, SessionSettings
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from onnx import TensorProto
from support import models

BACKEND = OnnxRuntimeBackend(Device.CPU, intra_op_threads=1)
PLATFORM = BACKEND.platform
FREE = models.identity(TensorProto.FLOAT, ("batch", "a", "b"))


def declare(folder: Path, text: str) -> DeclaredConfig:
    folder.mkdir(exist_ok=True)
    (folder / "config.pbtxt").write_text(text)
    return read(folder / "config.pbtxt", folder.name, PLATFORM)


@contextmanager
def loaded(tmp_path: Path, made: onnx.ModelProto, text: str, **server: int) -> Iterator[Servable]:
    models.write(tmp_path, "m", made)
    settings = ServerConfig(model_repository=tmp_path, **{"max_batch_size": 4, **server})
    declared = declare(tmp_path / "m", text)
    servable = load(
        "m",
        1,
        tmp_path / "m" / "1",
        declared,
        models=ModelTable(),
        backend=BACKEND,
        server=settings,
        responses=ResponseCache(0),
    )
    try:
        yield servable
    finally:
        assert servable.close(10)


def refused(tmp_path: Path, made: onnx.ModelProto, text: str, **server: int) -> str:
    with pytest.raises(LoadError) as caught, loaded(tmp_path, made, text, **server):
        pass
    message = str(caught.value)
    assert str(tmp_path) not in message
    assert "\n" not in message
    return message


def answered(servable: Servable) -> Message:
    return configuration("m", PLATFORM, servable.model.provider, servable.signature, servable.declared, servable.config)


def test_a_size_declared_for_a_free_axis_is_the_only_one(tmp_path: Path) -> None:
    text = """max_batch_size: 2
        input { name: "x" data_type: TYPE_FP32 dims: [5, -1] }
        output { name: "y" data_type: TYPE_FP32 dims: [5, -1] }"""
    with loaded(tmp_path, FREE, text) as servable:
        assert servable.signature.inputs[0].shape == ("batch", 5, "b")
        assert servable.signature.outputs[0].shape == ("batch", 5, "b")
        assert [list(tensor.dims) for tensor in answered(servable).input] == [[5, -1]]
        (answer,) = servable.model.run([np.ones((2, 5, 6), np.float32)])
        assert answer.shape == (2, 5, 6)
        with pytest.raises(
            RuntimeFailure, match=r"'y' has shape \[4, 6\], its configuration says \[5, -1\] \(without the batch axis\)"
        ):
            servable.model.run([np.ones((2, 4, 6), np.float32)])


def test_tensors_are_reshaped_both_ways_without_a_copy(tmp_path: Path) -> None:
    text = """max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: [6] reshape { shape: [2, 3] } }
        output { name: "y" data_type: TYPE_FP32 dims: [3, 2, 1] reshape { shape: [2, 3] } }"""
    with loaded(tmp_path, FREE, text) as servable:
        assert servable.config.batched, "two rows are seen to be independent in the clients' shapes"
        given_rows = np.arange(18, dtype=np.float32).reshape(3, 6)
        (answer,) = servable.model.run([given_rows])
        np.testing.assert_array_equal(answer, given_rows.reshape(3, 3, 2, 1))
        message = answered(servable)
        assert list(message.input[0].dims) == [6]
        assert list(message.input[0].reshape.shape) == [2, 3]


def test_reshape_without_a_batch_axis_and_to_a_scalar(tmp_path: Path) -> None:
    text = """input { name: "x" data_type: TYPE_FP32 dims: [-1, 6] reshape { shape: [-1, 2, 3] } }
        output { name: "y" data_type: TYPE_FP32 dims: [-1, 6] reshape { shape: [-1, 2, 3] } }"""
    with loaded(tmp_path, FREE, text) as servable:
        assert not servable.config.batched
        (answer,) = servable.model.run([np.ones((5, 6), np.float32)])
        assert answer.shape == (5, 6)
    column = models.identity(TensorProto.FLOAT, ("batch",))
    text = """max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }"""
    with loaded(tmp_path, column, text) as servable:
        (answer,) = servable.model.run([np.ones((3, 1), np.float32)])
        assert answer.shape == (3,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [6] reshape { shape: [2, 4] } }',
            "expected as many elements in bo",
        ),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-1, -1] reshape { shape: [-1, -1] } }', "at most one -1"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-1, 6] reshape { shape: [6] } }', "expected as many"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [0] }', r"dims \[0\]: expected sizes from 1, or -1"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [-2, 3] }', r"dims \[-2, 3\]: expected sizes from 1, or -1"),
        ('input { name: "x" data_type: TYPE_FP32 dims: [1] reshape { shape: [0] } }', r"reshape \[0\]: expected sizes"),
        ('input { name: "x" dims: [3, 3] }', "with data_type TYPE_INVALID: expected one of TYPE_BOOL, "),
        ('input { name: "x" } input { name: "x" }', "declares input 'x' 2 times: expected once"),
        ("output { }", "declares an output without a name"),
        ('max_batch_size: 2 output { name: "z" }', r"declares output 'z', the model has \['y'\]"),
        (
            'max_batch_size: 2 input { name: "x" data_type: TYPE_FP32 dims: 6 reshape { shape: [2, 3, 1] } }',
            r"with reshape \[2, 3, 1\], the model has \[-1, -1\] \(without the batch axis\)",
        ),
        ("max_batch_size: 65537", "max_batch_size: 65537, expected 0 or more, to 65536"),
        ("instance_group { } instance_group { }", "has 2 of instance_group: expected one"),
        ("instance_group { count: -1 }", "instance_group count: -1, expected from 1 to 1024"),
        ("instance_group { count: 1025 }", "expected from 1 to 1024"),
        ("instance_group { kind: KIND_MODEL }", "kind: KIND_MODEL, expected one of KIND_AUTO, KIND_CPU, KIND_GPU"),
        (
            "instance_group { kind: KIND_GPU }",
            "KIND_GPU, but this server runs models on CPUExecutionProvider, which is KI",
        ),
        ("dynamic_batching { preferred_batch_size: [2, 0] }", r"preferred_batch_size: \[2, 0\], expected sizes from 1"),
        ("dynamic_batching { preferred_batch_size: [2, 9] }", r"\[2, 9\], expected at most 4, the largest batch"),
        ("dynamic_batching { max_queue_delay_microseconds: 3600000001 }", "expected at most 3600000000, an hour"),
        (
            "dynamic_batching { preserve_ordering: true }",
            "input 'x' may have several: take it out, or declare its dims",
        ),
        (
            "dynamic_batching { preserve_ordering: true } instance_group { count: 2 }",
            "holds with one instance, and 2 would run",
        ),
        (
            'input { name: "x" } dynamic_batching { preferred_batch_size: 2 }',
            "preferred_batch_size, but the model is not",
        ),
        (
            'input { name: "x" } dynamic_batching { max_queue_delay_microseconds: 2 }',
            "max_queue_delay_microseconds, but the model is not batched: take it out",
        ),
        ("optimization { graph { level: 3 } }", "graph.level: 3, expected -1, 0, 1 or 2"),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "-1" } }',
            "'-1', expected a whole number from",
        ),
        ('parameters { key: "intra_op_thread_count" value { string_value: "9999" } }', "from 0 to 1024"),
        ('parameters { key: "inter_op_thread_count" value { } }', "'', expected a whole number"),
        ('parameters { key: "execution_mode" value { string_value: "2" } }', "'execution_mode': '2', expected 0 or 1"),
        ('parameters { key: "session.disable_prepacking" value { string_value: "y" } }', "'y', expected 0 or 1"),
        (
            'parameters { key: "session.unknown" value { string_value: "1" } }',
            "'session.unknown', which this server does",
        ),
        (
            'parameters { key: "gpu_mem_limit" value { string_value: "1" } }',
            "'gpu_mem_limit', which this server does not",
        ),
        (
            'parameters { key: "provider" value { string_value: "CUDAExecutionProvider" } }',
            "but this server runs models on",
        ),
        ('default_model_filename: "../other.onnx"', "expected the name of a file without a folder"),
        ('default_model_filename: "other.onnx"', r"version 1 has no other\.onnx: expected m/1/other\.onnx"),
        ('output { name: "y" label_filename: "none.txt" }', "'none.txt' of output 'y', which cannot be read: No such"),
        ('output { name: "y" label_filename: "/etc/passwd" }', "expected the name of a file without a folder"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, refused(tmp_path, FREE, text))


def test_labels_come_from_a_file_of_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.txt").write_text("eins\nzwei\ndr\u00e4i\n", encoding="utf-8")
    text = 'max_batch_size: 4 output { name: "probabilities" label_filename: "labels.txt" }'
    with loaded(tmp_path, models.classifier(), text) as servable:
        assert servable.labels == {"probabilities": ("eins", "zwei", "dr\u00e4i")}
        assert answered(servable).output[0].label_filename == "labels.txt"
        assert list(answered(servable).output[0].dims) == [3], "where only a name is declared, the rest is the model's"
    (tmp_path / "m" / "labels.txt").write_text("eins\n")
    assert "config.pbtxt has 1 labels for the 3 elements of 'probabilities'" in refused(
        tmp_path, models.classifier(), text
    )


def test_another_file_name(tmp_path: Path) -> None:
    path = models.write(tmp_path, "m", models.fixed_batch())
    path.rename(path.with_name("other.onnx"))
    with loaded(tmp_path, FREE, 'default_model_filename: "other.onnx"') as servable:
        assert servable.signature.inputs[0].shape == (1, 3), "not the model.onnx beside it"


@pytest.mark.parametrize("size", [0, 3])
def test_a_models_own_settings_go_before_the_servers(tmp_path: Path, size: int) -> None:
    text = f"""max_batch_size: {size} instance_group {{ count: 2 }}
        dynamic_batching {{ preferred_batch_size: [ 3, 2 ] max_queue_delay_microseconds: 70
            default_queue_policy {{
                max_queue_size: 9 default_timeout_microseconds: 800 allow_timeout_override: true }} }}"""
    with loaded(tmp_path, FREE, text, max_queue_size=100, max_queue_delay_microseconds=5) as servable:
        config = servable.config
        assert (config.max_batch_size, config.instances, config.max_queue_size) == (size or 4, 2, 9)
        assert (config.max_queue_delay_microseconds, config.preferred_rows) == (70, 2)
        assert [config.queue_timeout_us(asked) for asked in (0, 500, 900)] == [800, 500, 800]


def test_a_default_timeout_holds_against_the_requests_unless_they_may_shorten_it(tmp_path: Path) -> None:
    policy = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 800 } }"
    with loaded(tmp_path, FREE, policy) as servable:
        assert [servable.config.queue_timeout_us(asked) for asked in (0, 500, 900)] == [800, 800, 800]
    with loaded(tmp_path, FREE, "") as servable:
        assert [servable.config.queue_timeout_us(asked) for asked in (0, 500)] == [0, 500]


def test_order_is_kept_by_one_instance_and_one_shape(tmp_path: Path) -> None:
    text = "dynamic_batching { preserve_ordering: true } instance_group { kind: KIND_CPU count: 1 }"
    with loaded(tmp_path, models.classifier(), text, instances=2) as servable:
        assert servable.config.instances == 1


WARM_UP = """
    max_batch_size: 4
    model_warmup { name: "w" batch_size: 3 count: 2
        inputs { key: "a" value { data_type: TYPE_FP32 dims: 4 random_data: true } }
        inputs { key: "b" value { data_type: TYPE_FP32 dims: 4 input_data_file: "b.bin" } } }"""


def test_warm_up_requests_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[np.ndarray]] = []
    run = onnxruntime_backend.OnnxRuntimeModel.run

    def watch(self: onnxruntime_backend.OnnxRuntimeModel, inputs: list[np.ndarray]) -> list[np.ndarray]:
        seen.append(list(inputs))
        return run(self, inputs)

    monkeypatch.setattr(onnxruntime_backend.OnnxRuntimeModel, "run", watch)
    row = np.arange(4, dtype=np.float32)
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    (tmp_path / "m" / "warmup" / "b.bin").write_bytes(row.tobytes())
    with loaded(tmp_path, models.sum_and_difference(), WARM_UP):
        for a, b in seen[-2:]:
            np.testing.assert_array_equal(b, np.stack([row] * 3))
            assert a.shape == (3, 4)
            assert 0 <= a.min() < a.max() <= 1
    (tmp_path / "m" / "warmup" / "b.bin").write_bytes(b"123")
    assert "model_warmup 'w' has input_data_file 'b.bin', which does not fit: " in refused(
        tmp_path, models.sum_and_difference(), WARM_UP
    )
    (tmp_path / "m" / "warmup" / "b.bin").unlink()
    assert "'b.bin', which cannot be read: No such file" in refused(tmp_path, models.sum_and_difference(), WARM_UP)


@pytest.mark.parametrize("name", models.ELEMENT_TYPES)
def test_warm_up_has_data_of_every_type(tmp_path: Path, name: str) -> None:
    (tmp_path / "m" / "warmup").mkdir(parents=True)
    made = models.identity(models.ELEMENT_TYPES[name])
    texts = np.array([b"a", b"", b"\xc3\xa9"], object)
    with loaded(tmp_path, made, "") as servable:
        datatype = servable.signature.inputs[0].datatype
        row = texts if name == "BYTES" else np.zeros(3, datatype.numpy)
        (tmp_path / "m" / "warmup" / "row").write_bytes(bytes(encode_raw(row, datatype)))
    config_type = "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}"
    for data in ("zero_data: true", "random_data: true", 'input_data_file: "row"'):
        text = f'model_warmup {{ inputs {{ key: "x" value {{ data_type: {config_type} dims: 3 {data} }} }} }}'
        with loaded(tmp_path, made, text) as servable:
            assert servable.config.batched


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (
            'inputs { key: "ids" value { data_type: TYPE_INT64 dims: 3 } }',
            "no data: expected zero_data: true, random_data",
        ),
        (
            'inputs { key: "ids" value { data_type: TYPE_INT64 dims: 3 zero_data: false } }',
            "no data: expected zero_data",
        ),
        (
            'inputs { key: "ids" value { data_type: TYPE_INT64 dims: -1 zero_data: true } }',
            "[-1]: expected sizes from 1",
        ),
        (
            'inputs { key: "ids" value { data_type: TYPE_INT64 dims: 4 zero_data: true } }',
            "[4], the model has [3] (without",
        ),
        (
            'inputs { key: "ids" value { data_type: TYPE_INT8 dims: 3 zero_data: true } }',
            "TYPE_INT8, the model has TYPE_INT",
        ),
        (
            'inputs { key: "x" value { data_type: TYPE_INT64 dims: 3 zero_data: true } }',
            "inputs ['x'], the model has ['ids",
        ),
        ("", "inputs [], the model has ['ids']"),
        ("batch_size: 5", "batch_size: 5, expected at most 4"),
        (
            'inputs { key: "ids" value { data_type: TYPE_INT64 dims: 3 random_data: true } }',
            "fails: the model refuses the",
        ),
        (
            'inputs { key: "ids" value { data_type: TYPE_INT64 dims: 3 input_data_file: "../x" } }',
            "'../x', expected the name of a file without a folder",
        ),
    ],
)
def test_a_warm_up_that_does_not_fit_or_fails_fails_the_load(tmp_path: Path, sample: str, message: str) -> None:
    text = f'model_warmup {{ name: "w" {sample} }} max_batch_size: 4'
    assert message in refused(tmp_path, models.embedding(vocabulary=2), text)


def test_settings_reach_the_runtime(tmp_path: Path) -> None:
    values = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
        "session.disable_prepacking": "1",
        "session.intra_op.allow_spinning": "1",
    }
    text = " ".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in values.items()
    )
    declared = declare(tmp_path / "m", f"{text} optimization {{ graph {{ level: -1 }} }}")
    entries = {"session.disable_prepacking": "1", "session.intra_op.allow_spinning": "1"}
    settings = SessionSettings(3, 2, True, False, False, GraphLevel.BASIC, entries)
    assert declared.session == settings
    options = BACKEND._options(settings)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert (options.execution_mode.name, options.graph_optimization_level.name) == ("ORT_PARALLEL", "ORT_ENABLE_BASIC")
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    with loaded(tmp_path, models.classifier(), text) as servable:
        assert dict(answered(servable).parameters).keys() == {*values, "provider"}


FULL = """
    name: "m" backend: "onnxruntime" max_batch_size: 4 version_policy { specific { versions: [1, 2] } }
    input { name: "x" data_type: TYPE_FP32 dims: [6] reshape { shape: [2, 3] } }
    output { name: "y" data_type: TYPE_FP32 dims: [2, 3] label_filename: "labels.txt" }
    instance_group { kind: KIND_CPU } metric_tags { key: "team" value: "a" }
    dynamic_batching { preferred_batch_size: 2 preserve_ordering: true
        default_queue_policy { allow_timeout_override: true } }
    optimization { graph { level: 2 } } parameters { key: "free" value { string_value: "text" } }
    model_warmup { inputs { key: "x" value { data_type: TYPE_FP32 dims: 6 zero_data: true } } }
    response_cache { } model_transaction_policy { }
"""


@pytest.mark.parametrize("text", ["", FULL, 'input { name: "x" }', "version_policy { all { } }"])
def test_the_answer_is_a_configuration_that_answers_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.txt").write_text("a\nb\nc")
    with loaded(tmp_path, FREE, text) as servable:
        first = answered(servable)
    with loaded(tmp_path, FREE, text_format.MessageToString(first)) as servable:
        assert answered(servable) == first
        assert first.parameters["provider"].string_value == "CPUExecutionProvider"
    if text == FULL:
        assert first.metric_tags == {"team": "a"}
        assert first.parameters["free"].string_value == "text"
        assert first.dynamic_batching.preserve_ordering


def test_json_says_what_text_says(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "labels.txt").write_text("a\nb\nc")
    from_text = declare(tmp_path / "m", FULL)
    for keep in (True, False):
        text = json_format.MessageToJson(from_text.message, preserving_proto_field_name=keep)
        from_json = read_json(text, tmp_path / "m", "m", PLATFORM)
        assert from_json.source == "the config parameter"
        assert from_json.message == from_text.message
        assert from_json.inputs == from_text.inputs
        assert from_json.labels == from_text.labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected to be a JSON object"),
        ("[]", "expected to be a JSON object"),
        ("{", "is no JSON form of a model's configuration: "),
        ('{"no_such": 1}', 'no field named "no_such"'),
        ('{"max_batch_size": 1e400}', "Couldn't parse integer"),
        ('{"name": "\\ud800"}', "Unpaired surrogate"),
        ('{"parameters": {"a": null}}', "Failed to parse parameters"),
        ('{"dynamic_batching": {}, "sequence_batching": {}}', "multiple"),
        ('{"input":' * 5000, "recursion"),
        ('{"runtime": "x"}', "the config parameter sets runtime, and the library"),
        ('{"name": "other"}', "the config parameter says name: 'other' in the folder of model 'm'"),
        ('{"output": [{"name": "y", "label_filename": "../config.pbtxt"}]}', "without a folder"),
    ],
)
def test_json_that_cannot_be_honoured_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LoadError) as caught:
        read_json(text, tmp_path, "m", PLATFORM)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


NAMES = sorted({field.name for field in Message.DESCRIPTOR.fields} | {"key", "name", "dims", "count", "kind", "level"})
TEXTS = st.text("ab1./", max_size=4)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["TYPE_FP32", "m", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | TEXTS, inner, max_size=4),
    max_leaves=12,
)


@hypothesis.settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_no_json_does_anything_but_declare_or_fail_the_load(value: dict[str, object]) -> None:
    assert "\n" not in outcome(lambda: read_json(json.dumps(value), Path("/nowhere"), "m", PLATFORM))


@given(st.text(max_size=40) | st.text("{}[]:,\"' \nabcmx_-0159", max_size=40).map(lambda text: f"input {text}"))
def test_no_text_does_anything_but_declare_or_fail_the_load(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "config.pbtxt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "\n" not in outcome(lambda: read(path, "m", PLATFORM))


def outcome(reading: Callable[[], DeclaredConfig]) -> str:
    try:
        reading()
    except LoadError as error:
        return str(error)
    return ""
