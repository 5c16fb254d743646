"""Pipelines while models come, go and are replaced, and the limits and the end of what they have accepted."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from onnx import TensorProto
from support import models
from support.ensembles import (
    EXPLICIT,
    POLL,
    affine,
    ask,
    ensemble,
    index,
    pixels_of,
    refused,
    write_models,
)
from support.server import serve
from support.waiting import until


def test_no_request_fails_while_a_steps_model_is_replaced(tmp_path: Path, transport: str) -> None:
    write_models(tmp_path)
    with (
        serve(tmp_path, "--transport", transport, *POLL) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        stop = threading.Event()
        failures: list[BaseException] = []
        seen: set[float] = set()
        zero = np.zeros((1, 4), np.uint8)

        def call() -> None:
            while not stop.is_set():
                try:
                    seen.add(float(ask(client, "a_nested", "image", zero).as_numpy("sum")[0, 0]))
                except BaseException as error:  # noqa: BLE001 - none is expected, and each is shown
                    failures.append(error)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for version in range(2, 8):
            models.write(tmp_path / ".aside", "right", affine(3, 10 * version), version)
            (tmp_path / ".aside" / "right" / str(version)).rename(tmp_path / "right" / str(version))
            until(lambda version=version: 10 * version + 1.0 in seen or bool(failures))  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures
        assert seen >= {10.0 * version + 1 for version in range(2, 8)}


def test_an_ensemble_follows_what_becomes_of_its_steps_models(tmp_path: Path, transport: str) -> None:
    write_models(tmp_path)
    kept = tmp_path.with_name(f"{tmp_path.name}-kept")
    shutil.move(tmp_path / "right", kept)
    with (
        serve(tmp_path, "--transport", transport, *POLL) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert index(client)["a_whole"][0] == "UNAVAILABLE"
        assert "step 3 (model 'right'): model 'right' is not known" in index(client)["a_whole"][1]
        kept.rename(tmp_path / "right")
        until(lambda: client.is_model_ready("a_nested"))
        ask(client, "a_nested", "image", pixels_of(1))
        (tmp_path / "right").rename(kept)
        until(lambda: not client.is_model_ready("a_nested"))
        code, why = refused(lambda: ask(client, "a_nested", "image", pixels_of(1)))
        assert code == "UNAVAILABLE"
        assert "model 'a_whole' is not ready: step 3 (model 'right'): model 'right' is not known" in why
        assert client.is_model_ready("left")
        models.write(kept.parent / f"{kept.name}-other", "right", models.identity(TensorProto.INT32, ("batch", 4)))
        (kept.parent / f"{kept.name}-other" / "right").rename(tmp_path / "right")
        until(lambda: client.is_model_ready("right"))
        code, why = refused(lambda: ask(client, "a_whole", "pixels", pixels_of(1)))
        assert code == "UNAVAILABLE"
        assert why.startswith(
            "model 'a_whole' is not ready: its steps do not fit each other any more: tensor 'r' differs"
        )


def test_ensembles_come_and_go_by_request(tmp_path: Path, transport: str) -> None:
    write_models(tmp_path)
    with (
        serve(tmp_path, "--transport", transport, *EXPLICIT) as server,
        triton.InferenceServerClient(server.address) as client,
    ):

        def ready() -> set[str]:
            return {name for name, (state, _) in index(client).items() if state == "READY"}

        every = {"a_nested", "a_whole", "left", "right", "preprocess", "combine"}
        client.load_model("a_nested")
        assert ready() == every
        ask(client, "a_nested", "image", pixels_of(2))
        client.unload_model("a_nested")
        assert ready() == every - {"a_nested"}
        client.load_model("a_nested")
        client.load_model("right")
        client.unload_model("a_nested", unload_dependents=True)
        assert ready() == {"right"}, "it was loaded for itself"
        client.load_model("a_nested")
        client.load_model("a_whole")
        client.unload_model("a_nested", unload_dependents=True)
        assert ready() == every - {"a_nested"}, "another ensemble runs them"
        client.unload_model("left")
        assert not client.is_model_ready("a_whole")
        code, why = refused(lambda: ask(client, "a_whole", "pixels", pixels_of(1)))
        assert code == "UNAVAILABLE"
        assert why.startswith("model 'a_whole' is not ready: step 2 (model 'left'): model 'left' is not ready: version")
        shutil.rmtree(tmp_path / "left")
        code, why = refused(lambda: client.load_model("a_nested"))
        assert code == "INTERNAL"
        assert "step 2 (model 'left'): model 'left' is not ready" in why


def test_an_ensemble_at_the_start_brings_its_steps_models(tmp_path: Path, transport: str) -> None:
    write_models(tmp_path)
    with (
        serve(tmp_path, "--transport", transport, *EXPLICIT, "--load-model", "a_whole") as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert client.is_server_ready()
        ask(client, "a_whole", "pixels", pixels_of(2))
        assert not client.is_model_ready("a_nested")


def slow_pipeline(repository: Path) -> None:
    models.write(repository, "slow", models.slow(multiplications=1000))
    steps = [("slow", {"x": "x"}, {"y": "t"}), ("slow", {"x": "t"}, {"y": "y"})]
    ensemble(repository, "twice", {"x": ("FP32", [256])}, {"y": ("FP32", [256])}, steps)


def in_flight(client: triton.InferenceServerClient, count: int, **options: object) -> tuple[list[object], list[object]]:
    """Starts requests to `twice`: the calls, and the errors, None for an answer, as they come."""
    x = triton.InferInput("x", [1, 256], "FP32")
    x.set_data_from_numpy(np.ones((1, 256), np.float32))
    ended: list[object] = []
    calls = [
        client.async_infer("twice", [x], lambda result, error: ended.append(error), **options) for _ in range(count)
    ]
    return calls, ended


def test_the_limits_of_a_request_hold_for_all_steps(tmp_path: Path, transport: str) -> None:
    slow_pipeline(tmp_path)
    arguments = ("--transport", transport, "--max-batch-size", "1", "--max-queue-size", "8")
    with serve(tmp_path, *arguments) as server, triton.InferenceServerClient(server.address) as client:
        _, ended = in_flight(client, 4)
        code, why = refused(lambda: ask(client, "twice", "x", np.ones((1, 256), np.float32), "FP32", timeout=1000))
        waited = "the request waited in the queue longer than its timeout, or that of its model, allows"
        assert (code, why) == ("UNAVAILABLE", f"{why[:6]} (model 'slow'): {waited}")
        until(lambda: len(ended) == 4)
        assert not any(ended)
        _, timed = in_flight(client, 6, timeout=1)
        until(lambda: len(timed) == 6)
        # A fast machine may answer the first in time.
        _, late = in_flight(client, 6, client_timeout=0.001)
        until(lambda: len(late) == 6)
        passed = [error for error in late if error is not None]
        assert passed
        assert all("DEADLINE_EXCEEDED" in str(error) for error in passed)
        calls, gone = in_flight(client, 6)
        for call in calls:
            call.cancel()  # type: ignore[attr-defined]
        until(lambda: len(gone) == 6)
        _, many = in_flight(client, 40)
        until(lambda: len(many) == 40)
        full = [error for error in many if error is not None]
        assert full
        assert all("(model 'slow'): the queue is full (8 requests wait)" in str(error) for error in full)
        assert None in many
        assert ask(client, "twice", "x", np.ones((1, 256), np.float32), "FP32").as_numpy("y").shape == (1, 256)


def test_an_unload_and_the_end_of_the_server_finish_what_was_accepted(tmp_path: Path, transport: str) -> None:
    slow_pipeline(tmp_path)
    arguments = ("--transport", transport, *EXPLICIT, "--load-model", "twice", "--max-batch-size", "1")
    with serve(tmp_path, *arguments) as server, triton.InferenceServerClient(server.address) as client:
        _, ended = in_flight(client, 6)
        until(lambda: bool(ended))
        client.unload_model("twice", unload_dependents=True)
        until(lambda: len(ended) == 6)
        assert not any(error is not None and "unload" not in str(error) for error in ended)
        assert None in ended
        client.load_model("twice")
        _, ended = in_flight(client, 4)
        until(lambda: bool(ended))
        assert server.stop() == 0
        until(lambda: len(ended) == 4)
        assert not any(ended), "what was accepted is answered"


def test_a_model_that_keeps_sequences_is_no_step(tmp_path: Path, transport: str) -> None:
    models.write(tmp_path, "left", affine(2, 1))
    models.write(tmp_path, "sums", models.accumulator())
    (tmp_path / "sums" / "config.pbtxt").write_text(
        f"max_batch_size: 8 sequence_batching {{ {models.ACCUMULATOR_SEQUENCES} }}"
    )
    ensemble(tmp_path, "stepping", {"x": ("FP32", [1])}, {"y": ("FP32", [1])}, [("sums", {"x": "x"}, {"y": "y"})])
    with (
        serve(tmp_path, "--transport", transport) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert index(client)["sums"] == ("READY", "")
        state, reason = index(client)["stepping"]
    assert state == "UNAVAILABLE"
    assert "step 1 (model 'sums'): the model keeps sequences" in reason
