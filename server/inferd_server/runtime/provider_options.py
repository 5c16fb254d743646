"""The options of ONNX Runtime's execution providers for NVIDIA GPUs, as pure functions of what the operator asks.

Names and meanings are those of ONNX Runtime's documentation of its CUDA and TensorRT execution providers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from inferd_server.config import Precision
from inferd_server.runtime.backend import Signature
from inferd_server.runtime.options import GpuOptions

Options = dict[str, str]

SHRINK_ARENA = "memory.enable_memory_arena_shrinkage"
"""Run option: devices whose arenas give back what a run took, `gpu:0` for the first GPU."""
GRAPH_ID = "gpu_graph_id"
"""Run option: the captured graph that a run is of; runs of one id must have the same shapes and addresses."""
NO_GRAPH = "-1"
"""As GRAPH_ID: the run is neither captured nor replayed."""
DEVICE_INITIALIZERS = "session.use_device_allocator_for_initializers"
"""Session option: weights are kept outside of the arena, without which nothing of it can be given back."""


def cuda(options: GpuOptions) -> Options:
    """Those of the CUDAExecutionProvider.

    The search for convolution algorithms is HEURISTIC: EXHAUSTIVE, the provider's default, runs every algorithm for
    each new batch size, which callers would wait for. Memory grows by what is asked for, not to the next power of two,
    so that many models fit.
    """
    made = {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        # Copies to and from the device are made by this server around the run; those within a run stay in its order.
        "do_copy_in_default_stream": "1",
        "use_tf32": str(int(options.allow_tf32)),
        "enable_cuda_graph": str(int(options.cuda_graphs)),
    }
    if options.memory_limit_bytes:
        made["gpu_mem_limit"] = str(options.memory_limit_bytes)
    return made


def tensorrt(options: GpuOptions, folder: Path, prefix: str, signature: Signature | None, most_rows: int) -> Options:
    """Those of the TensorrtExecutionProvider: engines are kept in `folder`, in files that begin with `prefix`.

    Where only the batch axis varies, engines are built once for 1 to `most_rows` rows, best at the most; else TensorRT
    builds anew for shapes outside of those that it has seen.
    """
    made = {
        "device_id": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_engine_cache_prefix": prefix,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": str(int(options.tensorrt_precision is Precision.FP16)),
        "trt_bf16_enable": str(int(options.tensorrt_precision is Precision.BF16)),
    }
    profile = None if signature is None else _profile(signature, most_rows)
    if profile:
        for name, rows in (("min", 1), ("opt", most_rows), ("max", most_rows)):
            made[f"trt_profile_{name}_shapes"] = ",".join(f"{tensor}:{_shape(rows, row)}" for tensor, row in profile)
    return made


def engine_prefix(model_sha256: str, runtime_version: str, tensorrt_version: str, precision: Precision) -> str:
    """Begins the names of a model's engine files: another model, version or precision never finds them."""
    return f"{model_sha256[:32]}-ort{runtime_version}-trt{tensorrt_version}-{precision}"


def session_entries(options: GpuOptions, entries: Mapping[str, str]) -> Options:
    """Session options with what a GPU needs; those of config.pbtxt go before it."""
    return {DEVICE_INITIALIZERS: "1", **entries} if options.arena_shrinkage else dict(entries)


def _profile(signature: Signature, most_rows: int) -> Sequence[tuple[str, tuple[int, ...]]]:
    """Inputs with the shape of their row; none where other axes vary too, or none does."""
    if most_rows < 1:
        return ()
    rows = []
    for spec in signature.inputs:
        row = tuple(dim for dim in spec.shape[1:] if isinstance(dim, int))
        # TensorRT reads name:1x2,name:3: a name with these signs could not be told from what follows.
        ambiguous = set(spec.name) & set(":,")
        if not spec.shape or isinstance(spec.shape[0], int) or len(row) != len(spec.shape) - 1 or ambiguous:
            return ()
        rows.append((spec.name, row))
    return rows


def _shape(rows: int, row: tuple[int, ...]) -> str:
    return "x".join(map(str, (rows, *row)))
