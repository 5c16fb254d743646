"""Models on a GPU against the CPU: CUDA, FP16, CUDA graphs, TensorRT; and what a server does with one.

Skipped where there is none.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from inferd_client import Client
from inferd_server.config import Device, Precision
from inferd_server.errors import ConfigurationError
from inferd_server.repository.warm_up import prepare_samples
from inferd_server.runtime.backend import RuntimeModel, SessionSettings
from inferd_server.runtime.devices import providers
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from inferd_server.runtime.options import GpuOptions, RuntimeOptions
from onnx import TensorProto, helper, numpy_helper
from support import models
from support.server import serve

ROWS = 32
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    try:
        providers(Device.CUDA)
    except ConfigurationError as error:
        pytest.skip(str(error))


def convolution(element_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """x [batch, 3, 16, 16] -> y [batch, 10], in FP32 or FP16."""
    random, dtype = np.random.default_rng(5), helper.tensor_dtype_to_np_dtype(element_type)
    weights = {
        "w": (random.normal(0, 0.2, (8, 3, 3, 3))).astype(dtype),
        "d": (random.normal(0, 0.05, (8 * 14 * 14, 10))).astype(dtype),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"], axis=1),
        helper.make_node("MatMul", ["f", "d"], ["y"]),
    ]
    return models.model(
        nodes,
        [models.tensor("x", element_type, ("batch", 3, 16, 16))],
        [models.tensor("y", element_type, ("batch", 10))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )


def load(path: Path, device: Device, cache: Path, options: GpuOptions | None = None) -> RuntimeModel:
    asked = RuntimeOptions(gpu=options or GpuOptions(), cache=cache)
    model = OnnxRuntimeBackend(device, 1, asked).load(path, SessionSettings(most_rows=ROWS))
    model.prepare(prepare_samples(model.signature, ROWS))
    return model


def check(tmp_path: Path, model: RuntimeModel, path: Path, tolerance: float, *, times: int = 2) -> None:
    """Holds a model against the CPU at every size, and frees both."""
    cpu = load(path, Device.CPU, tmp_path)
    random, dtype = np.random.default_rng(6), model.signature.inputs[0].datatype.numpy
    # Beyond the largest size, and down again: rows of longer runs lie behind those of shorter ones.
    for rows in (1, 2, 3, 17, ROWS, 5, ROWS + 1, 1) * times:
        x = random.normal(0, 1, (rows, 3, 16, 16)).astype(dtype)
        np.testing.assert_allclose(model.run([x])[0], cpu.run([x])[0], rtol=tolerance, atol=tolerance)
    model.close()
    cpu.close()


@pytest.mark.parametrize("graphs", [False, True], ids=["bound", "graphs"])
def test_cuda_answers_as_the_cpu(tmp_path: Path, graphs: bool) -> None:
    path = models.write(tmp_path, "m", convolution())
    model = load(path, Device.CUDA, tmp_path, GpuOptions(cuda_graphs=graphs))
    assert model.provider == "CUDAExecutionProvider"
    check(tmp_path, model, path, 1e-4)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [(GpuOptions(allow_tf32=True), 2e-2), (GpuOptions(arena_shrinkage=True), 1e-4),
     (GpuOptions(memory_limit_bytes=256 * 1024 * 1024), 1e-4)],
    ids=["tf32", "shrinking", "limited"],
)  # fmt: skip
def test_cuda_answers_as_the_cpu_under_each_flag(tmp_path: Path, options: GpuOptions, tolerance: float) -> None:
    path = models.write(tmp_path, "m", convolution())
    check(tmp_path, load(path, Device.CUDA, tmp_path, options), path, tolerance)


@pytest.mark.parametrize("graphs", [False, True], ids=["bound", "graphs"])
def test_fp16_answers_as_the_cpu(tmp_path: Path, graphs: bool) -> None:
    path = models.write(tmp_path, "m", convolution(TensorProto.FLOAT16))
    check(tmp_path, load(path, Device.CUDA, tmp_path, GpuOptions(cuda_graphs=graphs)), path, 3e-2)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [(Precision.FP32, 1e-3), (Precision.FP16, 3e-2), (Precision.BF16, 2e-1)]
)
def test_tensorrt_answers_as_the_cpu_and_keeps_its_engines(
    tmp_path: Path, precision: Precision, tolerance: float
) -> None:
    try:
        providers(Device.TENSORRT)
    except ConfigurationError as error:
        pytest.skip(str(error))
    path = models.write(tmp_path, "m", convolution())
    options = GpuOptions(tensorrt_precision=precision)
    model = load(path, Device.TENSORRT, tmp_path, options)
    assert model.provider == "TensorrtExecutionProvider"
    check(tmp_path, model, path, tolerance)
    engines = {file: file.stat().st_mtime_ns for file in tmp_path.glob("tensorrt/*/*.engine")}
    assert engines
    load(path, Device.TENSORRT, tmp_path, options).close()
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("tensorrt/*/*.engine")} == engines


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Client]:
    models.write(tmp_path, "conv", convolution())
    flags = ("--device", "cuda", "--max-batch-size", str(ROWS), "--instances", "2")
    flags += ("--model-control-mode", "explicit", "--load-model", "conv")
    with serve(tmp_path, *flags) as running, Client(running.address) as client:
        yield client


def test_one_call_answers_as_many_do(server: Client) -> None:
    x = np.random.default_rng(7).normal(0, 1, (4 * ROWS, 3, 16, 16)).astype(np.float32)
    assert server.model_config("conv").provider == "CUDAExecutionProvider"
    whole = server.infer("conv", {"x": x})["y"]
    single = server.infer_many("conv", ({"x": x[row : row + 1]} for row in range(len(x))), concurrency=64)
    np.testing.assert_allclose(np.concatenate([answer["y"] for answer in single]), whole, rtol=1e-3, atol=1e-4)


def test_loads_and_unloads_give_the_memory_of_the_gpu_back(server: Client) -> None:
    x = np.ones((ROWS, 3, 16, 16), np.float32)

    def turn() -> int:
        server.load_model("conv")
        server.infer("conv", {"x": x})
        server.unload_model("conv")
        ends = time.monotonic() + 30
        while server.model_ready("conv"):
            assert time.monotonic() < ends
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except OSError as error:
            pytest.skip(f"nvidia-smi, which says what is in use, is not here: {error}")
        return int(done.stdout.split()[0])

    used = [turn() for _ in range(20)]
    # MiB. The first loads take what later ones use again.
    assert max(used[10:]) <= max(used[5:10]) + 32, used
