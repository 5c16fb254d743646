"""Runs on memory taken beforehand, with the host as the device: which size runs, what is padded, what is given back."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_server.errors import InvalidRequest, LoadError, RuntimeFailure
from inferd_server.repository.warm_up import prepare_samples
from inferd_server.runtime import cuda_memory
from inferd_server.runtime.backend import Signature, TensorSpec
from inferd_server.runtime.bound import BoundRunner
from inferd_server.runtime.buckets import bucket_of, bucket_sizes, can_be_bound
from inferd_server.runtime.cuda_memory import CudaMemory
from inferd_server.runtime.gpu_model import GpuModel
from inferd_server.runtime.launching import OneThread
from inferd_server.runtime.options import GpuOptions
from support import models
from support.host_memory import HostMemory


@pytest.mark.parametrize(("most", "sizes"), [(0, ()), (1, (1,)), (2, (1, 2)), (48, (1, 2, 4, 8, 16, 32, 48))])
def test_sizes_are_the_powers_of_two_and_the_most(most: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(most) == sizes


@pytest.mark.parametrize(("rows", "place"), [(0, None), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (48, 6), (49, None)])
def test_a_run_takes_the_smallest_size_with_room(rows: int, place: int | None) -> None:
    assert bucket_of(bucket_sizes(48), rows) == place


@pytest.mark.parametrize(
    ("shape", "datatype", "bound"),
    [
        (("batch", 2), "FP32", True),
        (("batch",), "INT64", True),
        ((1, 2), "FP32", False),
        (("batch", "length"), "FP32", False),
        (("batch", 0), "FP32", False),
        ((), "FP32", False),
        (("batch", 2), "BYTES", False),
        (("batch", 2), "BF16", False),
    ],
)
def test_only_numbers_with_one_free_axis_are_bound(shape: tuple[int | str, ...], datatype: str, bound: bool) -> None:
    spec = TensorSpec("x", BY_NAME[datatype], shape)
    fine = TensorSpec("y", BY_NAME["FP32"], ("batch", 1))
    assert can_be_bound(Signature((fine, spec), (fine,), {})) is bound
    assert can_be_bound(Signature((fine,), (spec,), {})) is bound


def gpu_model(
    tmp_path: Path, made: onnx.ModelProto, memory: HostMemory, options: GpuOptions | None = None, rows: int = 8
) -> GpuModel:
    session = ort.InferenceSession(models.write(tmp_path, "m", made), providers=["CPUExecutionProvider"])
    model = GpuModel(session, "CPUExecutionProvider", options or GpuOptions(), memory)
    model.prepare(prepare_samples(model.signature, rows))
    return model


@pytest.mark.parametrize("graphs", [False, True])
def test_bound_runs_answer_what_plain_runs_answer(tmp_path: Path, graphs: bool) -> None:
    memory = HostMemory()
    model = gpu_model(tmp_path, models.classifier(), memory, GpuOptions(cuda_graphs=graphs))
    random = np.random.default_rng(3)
    # Up and down, so that rows of longer runs lie behind those of shorter ones; 9 is beyond the largest size.
    for rows in (8, 3, 1, 5, 9, 2, 8, 7):
        images = random.integers(0, 256, (rows, 4, 4, 1), np.uint8)
        (answer,) = model.run([images])
        np.testing.assert_allclose(answer, models.classify(images), rtol=1e-5)
    model.close()
    assert (memory.buffers, memory.streams) == (0, 0)


def test_answers_stay_when_their_memory_is_used_again(tmp_path: Path) -> None:
    model = gpu_model(tmp_path, models.sum_and_difference(), HostMemory())
    ones = np.ones((4, 4), np.float32)
    first = model.run([ones, ones])
    model.run([ones * 5, ones])
    assert first[0].tolist() == (ones * 2).tolist()
    model.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_runs_of_many_threads_have_memory_of_their_own(tmp_path: Path, graphs: bool) -> None:
    memory = HostMemory()
    model = gpu_model(tmp_path, models.slow(4), memory, GpuOptions(cuda_graphs=graphs))
    before = memory.buffers

    def run(number: int) -> bool:
        x = np.full((1 + number % 8, 256), number, np.float32)
        return bool(np.array_equal(model.run([x])[0], x))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(200)))
    # At most a set for each thread and size, and with graphs those that were captured at load.
    assert before <= memory.buffers <= (before if graphs else before * 4)
    model.close()
    assert (memory.buffers, memory.streams) == (0, 0)


def test_rows_that_made_a_run_fail_are_not_left_for_the_next(tmp_path: Path) -> None:
    """Padded runs of a graph would fail with them too."""
    model = gpu_model(tmp_path, models.embedding(), HostMemory(), GpuOptions(cuda_graphs=True))
    bad = np.zeros((4, 3), np.int64)
    bad[3] = 99
    with pytest.raises(InvalidRequest, match="out of data bounds"):
        model.run([bad])
    (answer,) = model.run([np.ones((3, 3), np.int64)])
    assert answer.shape == (3, 3, 2)
    model.close()


def test_what_cannot_be_bound_runs_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = HostMemory()
    model = gpu_model(tmp_path, models.ragged(), memory, GpuOptions(cuda_graphs=True))
    assert "no CUDA graphs" in caplog.text
    assert model.run([np.ones((2, 5), np.float32)])[0].tolist() == [5, 5]
    assert (memory.buffers, memory.streams) == (0, 0)
    model.close()


class Full(HostMemory):
    """Ends after three buffers."""

    def host(self, nbytes: int) -> np.ndarray:
        if self.buffers == 3:
            raise LoadError("no 64 bytes of pinned memory are to be had: out of memory")
        return super().host(nbytes)


def test_a_device_that_is_full_is_a_warning_and_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = Full()
    model = gpu_model(tmp_path, models.classifier(), memory)
    assert "are slower: no 64 bytes of pinned memory" in caplog.text
    assert (memory.buffers, memory.streams) == (0, 0)
    images = np.ones((3, 4, 4, 1), np.uint8)
    np.testing.assert_allclose(model.run([images])[0], models.classify(images), rtol=1e-5)
    model.close()


def test_graphs_that_cannot_be_captured_fail_the_load(tmp_path: Path) -> None:
    memory = Full()
    with pytest.raises(LoadError, match="cannot be captured as CUDA graphs, see --cuda-graphs: no 64 bytes"):
        gpu_model(tmp_path, models.classifier(), memory, GpuOptions(cuda_graphs=True))
    assert (memory.buffers, memory.streams) == (0, 0)


def test_rows_beyond_the_sizes_are_told(tmp_path: Path) -> None:
    model = models.write(tmp_path, "m", models.classifier())
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    signature = Signature(
        (TensorSpec("image", BY_NAME["UINT8"], ("batch", 4, 4, 1)),),
        (TensorSpec("probabilities", BY_NAME["FP32"], ("batch", 3)),),
        {},
    )
    runner = BoundRunner(session, signature, HostMemory(), 2, graphs=False)
    assert (runner.fits(2), runner.fits(3), runner.fits(0)) == (True, False, False)
    with pytest.raises(ValueError, match="expected 1 to 2 rows, got 3"):
        runner.run([np.zeros((3, 4, 4, 1), np.uint8)])
    runner.close()


def test_graphs_are_captured_and_run_by_one_thread_at_a_time() -> None:
    launch = OneThread()
    seen: list[int] = []
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: launch(lambda: seen.append(threading.get_ident())), range(50)))
    assert len(seen) == 50
    assert len(set(seen)) == 1
    assert seen[0] != threading.get_ident()
    with pytest.raises(ValueError, match="its own"):
        launch(lambda: int("its own"))
    launch.close()


def test_a_run_that_waits_for_a_graph_is_told_of_the_end(tmp_path: Path) -> None:
    running, go_on = threading.Semaphore(0), threading.Event()

    class Slow(HostMemory):
        block = False

        def wait(self, stream: int) -> None:
            if self.block:
                running.release()
                assert go_on.wait(30)

    memory = Slow()
    model = gpu_model(tmp_path, models.sum_and_difference(), memory, GpuOptions(cuda_graphs=True), rows=1)
    memory.block = True
    ones = np.ones((1, 4), np.float32)
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(model.run, [ones, ones]) for _ in range(3)]
        for _ in range(2):
            assert running.acquire(timeout=30)
        model.close()
        go_on.set()
        failures = [answer.exception() for answer in answers]
    assert any(failures)
    assert all(
        failure is None or (isinstance(failure, RuntimeFailure) and "unloaded" in str(failure)) for failure in failures
    )
    assert (memory.buffers, memory.streams) == (0, 0)


def test_a_run_that_outlives_the_model_keeps_its_memory(tmp_path: Path) -> None:
    """A server that stops while a run goes on closes the model under it."""
    running, go_on = threading.Event(), threading.Event()

    class Slow(HostMemory):
        block = False

        def wait(self, stream: int) -> None:
            if self.block:
                running.set()
                assert go_on.wait(30)

    memory = Slow()
    model = gpu_model(tmp_path, models.sum_and_difference(), memory)
    memory.block = True
    ones = np.ones((2, 4), np.float32)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(model.run, [ones, ones])
        assert running.wait(30)
        model.close()
        assert (memory.buffers, memory.streams) == (4, 1)
        go_on.set()
        assert answer.result()[0].tolist() == (ones * 2).tolist()
    assert (memory.buffers, memory.streams) == (0, 0)
    with pytest.raises(RuntimeFailure, match="unloaded"):
        model.run([ones, ones])


def test_a_missing_cuda_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *_: object) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(cuda_memory.ctypes, "CDLL", missing)
    with pytest.raises(LoadError, match=r"not found: expected libcudart\.so\.13 or libcudart\.so\.12"):
        CudaMemory()
