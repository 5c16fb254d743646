"""What the execution providers of GPUs are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_server.config import Device, Precision, ServerConfig, Tune
from inferd_server.errors import ConfigurationError
from inferd_server.runtime import options, provider_options
from inferd_server.runtime.backend import Dim, Signature, TensorSpec
from inferd_server.runtime.options import GpuOptions


def test_cuda_is_exact_bounded_and_searches_briefly() -> None:
    made = provider_options.cuda(GpuOptions())
    assert made == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "do_copy_in_default_stream": "1",
        "use_tf32": "0",
        "enable_cuda_graph": "0",
    }


def test_cuda_does_what_the_flags_say() -> None:
    made = provider_options.cuda(GpuOptions(allow_tf32=True, cuda_graphs=True, memory_limit_bytes=123))
    assert (made["use_tf32"], made["enable_cuda_graph"], made["gpu_mem_limit"]) == ("1", "1", "123")


def signature(*shapes: tuple[Dim, ...], name: str = "x") -> Signature:
    return Signature(tuple(TensorSpec(f"{name}{n}", BY_NAME["FP32"], shape) for n, shape in enumerate(shapes)), (), {})


def test_engines_are_kept_and_fit_every_batch() -> None:
    folder = Path("engines")
    made = provider_options.tensorrt(GpuOptions(), folder, "p", signature(("batch", 28, 28), (None,)), 64)
    assert (made["trt_engine_cache_enable"], made["trt_engine_cache_path"]) == ("1", "engines")
    assert made["trt_engine_cache_prefix"] == "p"
    assert made["trt_profile_min_shapes"] == "x0:1x28x28,x1:1"
    assert made["trt_profile_opt_shapes"] == made["trt_profile_max_shapes"] == "x0:64x28x28,x1:64"


@pytest.mark.parametrize(
    ("precision", "fp16", "bf16"),
    [(Precision.FP32, "0", "0"), (Precision.FP16, "1", "0"), (Precision.BF16, "0", "1")],
)
def test_engines_calculate_in_what_was_asked_for(precision: Precision, fp16: str, bf16: str) -> None:
    made = provider_options.tensorrt(GpuOptions(tensorrt_precision=precision), Path("engines"), "p", None, 64)
    assert (made["trt_fp16_enable"], made["trt_bf16_enable"]) == (fp16, bf16)


@pytest.mark.parametrize(
    "unknown",
    [signature(("batch", "length")), signature((1, 3)), signature(()), signature(("batch", 3), name="a:b"), None],
)
def test_no_profile_is_made_up(unknown: Signature | None) -> None:
    made = provider_options.tensorrt(GpuOptions(), Path("engines"), "p", unknown, 64)
    assert not any(name.startswith("trt_profile") for name in made)
    assert not any("profile" in name for name in provider_options.tensorrt(GpuOptions(), Path("e"), "p", None, 0))


def test_engines_of_another_model_version_or_precision_are_not_found() -> None:
    prefix = provider_options.engine_prefix
    made = {
        prefix("a" * 64, "1.31", "101300", Precision.FP32),
        prefix("b" * 64, "1.31", "101300", Precision.FP32),
        prefix("a" * 64, "1.32", "101300", Precision.FP32),
        prefix("a" * 64, "1.31", "101400", Precision.FP32),
        prefix("a" * 64, "1.31", "101300", Precision.FP16),
        prefix("a" * 64, "1.31", "101300", Precision.BF16),
    }
    assert len(made) == 6


def test_shrinking_keeps_weights_out_of_the_arena() -> None:
    key = provider_options.DEVICE_INITIALIZERS
    assert provider_options.session_entries(GpuOptions(), {"a": "1"}) == {"a": "1"}
    assert provider_options.session_entries(GpuOptions(arena_shrinkage=True), {"a": "1"}) == {"a": "1", key: "1"}
    assert provider_options.session_entries(GpuOptions(arena_shrinkage=True), {key: "0"}) == {key: "0"}


def test_flags_reach_the_runtime(tmp_path: Path) -> None:
    config = ServerConfig(
        model_repository=tmp_path,
        device=Device.CUDA,
        allow_tf32=True,
        cuda_graphs=True,
        gpu_memory_limit_bytes=5,
        tune=Tune.ON,
        tune_secs=2.5,
        cache_dir=tmp_path / "cache",
        intra_op_threads=3,
        instances=2,
    )
    made = options.from_config(config)
    assert made.gpu == GpuOptions(allow_tf32=True, cuda_graphs=True, memory_limit_bytes=5)
    assert (made.tune.on, made.tune.seconds, made.tune.threads_are_set, made.tune.instances) == (True, 2.5, True, 2)
    assert made.cache == tmp_path / "cache"
    assert options.from_config(ServerConfig(model_repository=tmp_path)) == options.RuntimeOptions()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cuda_graphs": True}, "--cuda-graphs needs --device cuda, got --device auto"),
        ({"cuda_graphs": True, "device": Device.CUDA, "gpu_arena_shrinkage": True}, "exclude each other"),
        (
            {"tensorrt_precision": Precision.BF16, "device": Device.CUDA},
            "--tensorrt-precision bf16 needs --device tensorrt, got --device cuda",
        ),
        ({"gpu_memory_limit_bytes": -1}, "--gpu-memory-limit-bytes expects at least 0, got -1"),
        ({"tune_secs": 0.0}, "--tune-secs expects more than 0"),
        ({"tune_secs": float("nan")}, "--tune-secs expects more than 0"),
        ({"tune_secs": float("inf")}, "at most 600, got inf"),
    ],
)
def test_flags_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ServerConfig(model_repository=tmp_path, **settings)  # type: ignore[arg-type]
