"""Sequences as tritonclient drives them: state kept by the server, compared with numpy."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shared_memory
from google.protobuf import json_format
from support import models
from support.server import ServerProcess, serve
from tritonclient.utils import InferenceServerException

THREADS, SEQUENCES, LENGTH = 8, 50, 12
SECONDS = 60.0
PATIENT = "max_sequence_idle_microseconds: 600000000"
VISIBLE_STATE = """
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "next_total" data_type: TYPE_FP32 dims: [ 1 ] }
"""


def publish(folder: Path, name: str, made: onnx.ModelProto, sequences: str, rest: str = "") -> None:
    models.write(folder, name, made)
    text = f"{rest} max_batch_size: 16 sequence_batching {{ {sequences} }}"
    (folder / name / "config.pbtxt").write_text(text)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sequences")
    publish(folder, "sums", models.accumulator(), PATIENT + models.ACCUMULATOR_SEQUENCES)
    publish(folder, "shown", models.accumulator(), PATIENT + models.ACCUMULATOR_SEQUENCES, VISIBLE_STATE)
    publish(folder, "hasty", models.accumulator(), "max_sequence_idle_microseconds: 1" + models.ACCUMULATOR_SEQUENCES)
    bound = "oldest { max_candidate_sequences: 1 }"
    publish(folder, "single", models.accumulator(), PATIENT + models.ACCUMULATOR_SEQUENCES + bound)
    publish(folder, "lstm", models.lstm_cell(), PATIENT + models.LSTM_SEQUENCES)
    models.write(folder, "other", models.constant(1))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, transport: str) -> Iterator[ServerProcess]:
    loaded = [flag for folder in repository.iterdir() for flag in ("--load-model", folder.name)]
    options = ("--transport", transport, "--instances", "2", "--model-control-mode", "explicit")
    with serve(repository, *options, *loaded) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as connected:
        yield connected


def step(
    client: triton.InferenceServerClient,
    model: str,
    sequence: int | str,
    x: np.ndarray | float,
    *,
    start: bool = False,
    end: bool = False,
) -> triton.InferResult:
    array = np.asarray(x, np.float32).reshape(1, -1)
    tensor = triton.InferInput("x", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return client.infer(model, [tensor], sequence_id=sequence, sequence_start=start, sequence_end=end)


def total(*arguments: object, **options: bool) -> float:
    return float(step(*arguments, **options).as_numpy("y")[0, 0])  # type: ignore[arg-type]


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def run_sequences(
    address: str,
    model: str,
    sequences: dict[int | str, np.ndarray],
    pause: Callable[[], object],
    seed: int,
) -> dict[int | str, np.ndarray]:
    """Sends the steps of the sequences in a random order of their own, over one connection; pauses half way."""
    order = [name for name, steps in sequences.items() for _ in steps]
    random.Random(seed).shuffle(order)
    answers: dict[int | str, list[np.ndarray]] = {name: [] for name in sequences}
    with triton.InferenceServerClient(address) as client:
        for place, name in enumerate(order):
            if place == len(order) // 2:
                pause()
            done, steps = len(answers[name]), sequences[name]
            result = step(client, model, name, steps[done], start=done == 0, end=done == len(steps) - 1)
            answers[name].append(result.as_numpy("y")[0])
    return {name: np.array(rows) for name, rows in answers.items()}


@pytest.mark.parametrize(
    ("model", "width", "expected"),
    [
        ("sums", 1, lambda steps: np.cumsum(steps, axis=0, dtype=np.float32)),
        ("lstm", models.LSTM_INPUT, models.lstm),
    ],
)
def test_many_sequences_from_many_threads_through_a_reload_of_another_model(
    server: ServerProcess,
    client: triton.InferenceServerClient,
    repository: Path,
    model: str,
    width: int,
    expected: Callable[[np.ndarray], np.ndarray],
) -> None:
    data = np.random.default_rng(5).normal(size=(SEQUENCES, LENGTH, width)).astype(np.float32)
    names: list[int | str] = [number if number % 2 else f"sequence-{number}" for number in range(1, SEQUENCES + 1)]
    shares = [dict(zip(names[thread::THREADS], data[thread::THREADS], strict=True)) for thread in range(THREADS)]
    half = threading.Barrier(THREADS + 1)

    def pause() -> None:
        half.wait(SECONDS)

    with ThreadPoolExecutor(THREADS) as pool:
        running = [
            pool.submit(run_sequences, server.address, model, share, pause, seed) for seed, share in enumerate(shares)
        ]
        half.wait(SECONDS)
        onnx.save(models.constant(2), repository / "other" / "1" / "model.onnx")
        client.load_model("other")
        answers = {name: rows for each in running for name, rows in each.result(SECONDS).items()}
    for name, steps in zip(names, data, strict=True):
        np.testing.assert_allclose(answers[name], expected(steps), rtol=1e-4, atol=1e-5)
    for name in names[:2]:
        assert refused(lambda name=name: step(client, model, name, data[0, 0]))[0] == "INVALID_ARGUMENT"  # type: ignore[misc]


def test_one_sequence_from_many_connections_runs_one_request_at_a_time(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    assert total(client, "sums", 1000, 0, start=True) == 0

    def add(count: int) -> list[float]:
        with triton.InferenceServerClient(server.address) as own:
            return [total(own, "sums", 1000, 1) for _ in range(count)]

    with ThreadPoolExecutor(THREADS) as pool:
        sums = [each for share in pool.map(add, [25] * THREADS) for each in share]
    assert sorted(sums) == list(range(1, 25 * THREADS + 1))


def test_callers_see_neither_state_nor_controls(client: triton.InferenceServerClient) -> None:
    assert "sequence" in client.get_server_metadata().extensions
    for model, outputs in (("sums", ["y"]), ("shown", ["y", "next_total"])):
        metadata = client.get_model_metadata(model)
        assert [tensor.name for tensor in metadata.inputs] == ["x"]
        assert [tensor.name for tensor in metadata.outputs] == outputs
        result = step(client, model, 9, 3, start=True)
        assert [output.name for output in result.get_response().outputs] == outputs
        assert step(client, model, 9, 4, end=True).as_numpy(outputs[-1]).tolist() == [[7]]
    tensor = triton.InferInput("total", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
    code, why = refused(lambda: client.infer("sums", [tensor], sequence_id=9, sequence_start=True))
    assert (code, why) == ("INVALID_ARGUMENT", "input 'total' is unknown: the model expects ['x']")


def test_what_contradicts_the_model_is_refused(client: triton.InferenceServerClient) -> None:
    code, why = refused(lambda: step(client, "sums", 0, 1))
    assert code == "INVALID_ARGUMENT"
    assert why.startswith("inference request to model 'sums' must specify a non-zero or non-empty correlation ID")
    code, why = refused(lambda: step(client, "sums", 77, 1))
    assert code == "INVALID_ARGUMENT"
    assert "sequence 77 to model 'sums' must specify the START flag on the first request" in why
    code, why = refused(lambda: step(client, "other", 77, [1, 2, 3], start=True))
    assert code == "INVALID_ARGUMENT"
    assert "asks for a sequence, and model 'other' keeps none" in why
    for rows in (0, 2):
        tensor = triton.InferInput("x", [rows, 1], "FP32")
        tensor.set_data_from_numpy(np.zeros((rows, 1), np.float32))
        code, why = refused(lambda tensor=tensor: client.infer("sums", [tensor], sequence_id=5, sequence_start=True))  # type: ignore[misc]
        assert (code, why) == ("INVALID_ARGUMENT", f"a request of a sequence is expected to have 1 row, got {rows}")


def test_sequences_that_idle_and_those_beyond_the_bound(client: triton.InferenceServerClient) -> None:
    assert total(client, "hasty", 1, 5, start=True) == 5
    code, why = refused(lambda: step(client, "hasty", 1, 5))
    assert code == "INVALID_ARGUMENT"
    assert "was dropped, since it was idle for more than 1 microseconds" in why
    assert total(client, "single", "a", 5, start=True) == 5
    assert refused(lambda: step(client, "single", "b", 5, start=True)) == (
        "UNAVAILABLE",
        "model 'single' has 1 live sequences, the most it may have: end some with sequence_end, or try again later",
    )
    assert total(client, "single", "a", 5, end=True) == 10
    assert total(client, "single", "b", 5, start=True, end=True) == 5


def test_a_sequence_on_a_stream_is_answered_in_order(client: triton.InferenceServerClient) -> None:
    steps, names = 100, (41, "on a stream")
    answers: queue.Queue[tuple[triton.InferResult | None, InferenceServerException | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        for place in range(steps):
            for name in names:
                tensor = triton.InferInput("x", [1, 1], "FP32")
                tensor.set_data_from_numpy(np.full((1, 1), place, np.float32))
                client.async_stream_infer(
                    "sums",
                    [tensor],
                    request_id=f"{name} {place}",
                    sequence_id=name,
                    sequence_start=place == 0,
                    sequence_end=place == steps - 1,
                    priority=1 + place % 3,
                )
        expected = np.cumsum(np.arange(steps))
        for place in range(steps):
            for name in names:
                result, error = answers.get(timeout=SECONDS)
                assert error is None
                assert result is not None
                assert result.get_response().id == f"{name} {place}"
                assert result.as_numpy("y").tolist() == [[expected[place]]]
    finally:
        client.stop_stream()


def test_steps_are_counted_as_other_requests_are(client: triton.InferenceServerClient) -> None:
    def counts() -> tuple[int, int, int]:
        (found,) = client.get_inference_statistics("shown").model_stats
        return found.inference_count, found.inference_stats.success.count, found.inference_stats.fail.count

    rows, succeeded, failed = counts()
    for place in range(3):
        step(client, "shown", 55, 1, start=place == 0, end=place == 2)
    refused(lambda: step(client, "shown", 55, 1))
    assert counts() == (rows + 3, succeeded + 3, failed + 1)


def test_the_configuration_is_answered_as_declared_and_can_be_loaded(
    server: ServerProcess, client: triton.InferenceServerClient
) -> None:
    config = client.get_model_config("sums").config
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert config.sequence_batching.max_sequence_idle_microseconds == 600_000_000
    assert [state.input_name for state in config.sequence_batching.state] == ["total"]
    assert [tensor.name for tensor in config.input] == ["x"]
    assert [tensor.name for tensor in config.output] == ["y"]
    client.load_model("sums", config=json_format.MessageToJson(config))
    assert total(client, "sums", 3, 5, start=True) == 5
    assert total(client, "sums", 3, 5, end=True) == 10
    client.load_model("sums")


def test_the_answers_of_a_sequence_may_go_to_shared_memory(client: triton.InferenceServerClient) -> None:
    with contextlib.ExitStack() as stack:
        key = f"/inferd-steps-{uuid.uuid4().hex}"
        region = shared_memory.create_shared_memory_region("steps", key, 8, create_only=True)
        stack.callback(shared_memory.destroy_shared_memory_region, region)
        client.register_system_shared_memory("steps", key, 8)
        stack.callback(client.unregister_system_shared_memory, "steps")
        tensor = triton.InferInput("x", [1, 1], "FP32")
        output = triton.InferRequestedOutput("y")

        def add(value: float, nbytes: int = 4, **options: bool) -> float:
            output.set_shared_memory("steps", nbytes)
            shared_memory.set_shared_memory_region(region, [np.full((1, 1), value, np.float32)], offset=4)
            tensor.set_shared_memory("steps", 4, offset=4)
            client.infer("sums", [tensor], outputs=[output], sequence_id=66, **options)
            return float(shared_memory.get_contents_as_numpy(region, np.float32, [1])[0])

        assert add(5, sequence_start=True) == 5
        code, _ = refused(lambda: add(100, nbytes=2))
        assert code == "INVALID_ARGUMENT"
        assert add(1, sequence_end=True) == 6, "what did not fit has left the state as it was"


def test_a_reload_ends_the_sequences_of_its_model(client: triton.InferenceServerClient, repository: Path) -> None:
    assert total(client, "sums", 1, 5, start=True) == 5
    client.load_model("sums")
    assert total(client, "sums", 1, 5) == 10, "nothing has changed, nothing was loaded"
    changed = models.accumulator()
    changed.doc_string = "changed"
    onnx.save(changed, repository / "sums" / "1" / "model.onnx")
    client.load_model("sums")
    code, why = refused(lambda: step(client, "sums", 1, 5))
    assert code == "INVALID_ARGUMENT"
    assert why.endswith("or the model was loaded anew")
    assert total(client, "sums", 1, 5, start=True) == 5
