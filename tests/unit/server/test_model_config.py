from __future__ import annotations

from pathlib import Path

import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.repository.model_config import DeclaredConfig, has_batch_axis, read, resolve, why_not_batchable
from inferd_server.repository.version_policy import All, Latest, Specific, VersionPolicy, served
from inferd_server.runtime.backend import Dim, Signature, TensorSpec

SERVER = ServerConfig(model_repository=Path("unused"), max_batch_size=32)
PLATFORM = "onnxruntime_onnx"


def signature(*inputs: tuple[Dim, ...], output: tuple[Dim, ...] = ("batch", 10)) -> Signature:
    specs = tuple(TensorSpec(f"x{number}", BY_NAME["FP32"], shape) for number, shape in enumerate(inputs))
    return Signature(specs, (TensorSpec("y", BY_NAME["FP32"], output),), {})


def declared(tmp_path: Path, text: str) -> DeclaredConfig:
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    return read(path, "m", PLATFORM)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (signature(("batch", 3)), True),
        (signature(("N", 3), ("N",), output=("unk__4", 10)), True),
        (signature((None, 3)), True),
        (signature((1, 3)), False),
        (signature(("batch", 3), output=(10,)), False),
        (signature(("a", 3), ("b", 3)), False),
        (signature(()), False),
        (signature(), False),
    ],
)
def test_what_looks_like_a_batch_axis(given: Signature, expected: bool) -> None:
    assert has_batch_axis(given) is expected


def test_without_a_file_the_model_decides() -> None:
    assert resolve(signature(("batch", 3)), True, DeclaredConfig(), SERVER).max_batch_size == 32
    assert resolve(signature((1, 3)), False, DeclaredConfig(), SERVER).max_batch_size == 0


def test_a_file_is_honoured(tmp_path: Path) -> None:
    config = declared(
        tmp_path,
        f"""
        name: "m" platform: "{PLATFORM}" max_batch_size: 8
        input [{{ name: "x0" data_type: TYPE_FP32 dims: [ 3 ] }}]
        output [{{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }}]
        version_policy: {{ specific {{ versions: [ 1, 3 ] }} }}
        """,
    )
    assert config.version_policy == Specific((1, 3))
    assert resolve(signature(("batch", 3)), True, config, SERVER).max_batch_size == 8


@pytest.mark.parametrize(
    ("text", "cached"),
    [("response_cache { enable: true }", True), ("response_cache { enable: false }", False), ("", False)],
)
def test_a_file_may_ask_for_the_response_cache(tmp_path: Path, text: str, cached: bool) -> None:
    assert declared(tmp_path, text).response_cache is cached


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size: oops", "cannot be read"),
        ('name: "other"', "'other' in the folder of model 'm'"),
        ('platform: "tensorflow_savedmodel"', "this server runs 'onnxruntime_onnx'"),
        ('backend: "python"', "this server runs 'onnxruntime'"),
        ("max_batch_size: -1", "expected 0 or more"),
        (
            "sequence_batching { iterative_sequence: true }",
            "sets sequence_batching.iterative_sequence, and a request has",
        ),
        ("ensemble_scheduling { }", "expected to declare its input and its output"),
        (
            "sequence_batching { } response_cache { enable: true }",
            "sets response_cache beside sequence_batching, .*: take one of them out",
        ),
        ('runtime: "a" model_metrics { }', "sets runtime, .*: take it out, and model_metrics too$"),
        ('input [{ name: "x0" optional: true }]', "sets input.optional of 'x0', and every input"),
        ("version_policy: { specific { } }", "expects versions from 1"),
    ],
)
def test_a_file_that_cannot_be_honoured_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        declared(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'max_batch_size: 8 input [{ name: "z" data_type: TYPE_FP32 dims: [3] }]',
            r"input 'z', the model has \['x0'\]",
        ),
        (
            'max_batch_size: 8 input [{ name: "x0" data_type: TYPE_INT8 dims: [3] }]',
            "TYPE_INT8, the model has TYPE_FP32",
        ),
        ('max_batch_size: 8 input [{ name: "x0" data_type: TYPE_FP32 dims: [4] }]', r"dims \[4\], the model has \[3\]"),
        (
            'max_batch_size: 8 input [{ name: "x0" data_type: TYPE_FP32 dims: [-1, 3] }]',
            r"dims \[-1, 3\], the model has \[3\] \(without the batch axis\)",
        ),
        ('input [{ name: "x0" data_type: TYPE_FP32 dims: [3] }]', r"dims \[3\], the model has \[-1, 3\]"),
    ],
)
def test_a_file_that_contradicts_the_model_is_refused_with_both(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        resolve(signature(("batch", 3)), True, declared(tmp_path, text), SERVER)


def test_batching_a_model_with_a_fixed_axis_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="axis 0 of 'x0' is fixed at 1: export with a dynamic batch"):
        resolve(signature((1, 3)), False, declared(tmp_path, "max_batch_size: 8"), SERVER)


def test_the_reason_for_no_batching_is_found() -> None:
    assert "'x1' is a scalar" in why_not_batchable(signature(("batch", 3), ()))
    assert "['a', 'b']" in why_not_batchable(signature(("a", 3), ("b", 3)))
    assert "not independent" in why_not_batchable(signature(("batch", 3)))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [(Latest(), (9,)), (Latest(2), (3, 9)), (Latest(7), (1, 3, 9)), (All(), (1, 3, 9)), (Specific((3, 4)), (3, 4))],
)
def test_version_policies(policy: VersionPolicy, expected: tuple[int, ...]) -> None:
    assert served((3, 1, 9), policy) == expected


def test_no_versions_are_no_versions() -> None:
    assert served((), Latest()) == ()
