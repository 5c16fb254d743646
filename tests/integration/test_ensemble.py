"""Pipelines: ensembles whose steps run other models of the repository inside the server."""

from __future__ import annotations

import operator
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from support import models
from support.server import serve
from tritonclient.utils import InferenceServerException, shared_memory

SECONDS = 60
POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "0.02")
EXPLICIT = ("--model-control-mode", "explicit")

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""By name: the config type without its prefix, and the dims."""


def ensemble(
    repository: Path,
    name: str,
    inputs: Tensors,
    outputs: Tensors,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
    max_batch_size: int = 8,
) -> None:
    """Writes an ensemble, whole, by a rename."""
    lines = [f'platform: "ensemble"\nmax_batch_size: {max_batch_size}']
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor, (config_type, dims) in tensors.items():
            lines.append(f'{kind} {{ name: "{tensor}" data_type: TYPE_{config_type} dims: {list(dims)} }}')
    lines.append("ensemble_scheduling {")
    for model, taken, made in steps:
        maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in taken.items()]
        maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in made.items()]
        lines.append(f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}')
    lines.append("}")
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    aside = repository / name / ".config.pbtxt"
    aside.write_text("\n".join(lines))
    aside.rename(repository / name / "config.pbtxt")


def affine(factor: float, offset: float, width: int = 4) -> onnx.ModelProto:
    """x float [batch, width] -> y = factor x + offset."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["y"]),
    ]
    x, y = (models.tensor(name, TensorProto.FLOAT, ("batch", width)) for name in "xy")
    constants = {"factor": factor, "offset": offset}
    return models.model(
        nodes,
        [x],
        [y],
        [onnx.numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )


def to_float() -> onnx.ModelProto:
    """raw uint8 [batch, 4] -> values float [batch, 4], in 0 to 1."""
    nodes = [helper.make_node("Cast", ["raw"], ["wide"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Div", ["wide", "most"], ["values"]))
    raw = models.tensor("raw", TensorProto.UINT8, ("batch", 4))
    values = models.tensor("values", TensorProto.FLOAT, ("batch", 4))
    return models.model(nodes, [raw], [values], [onnx.numpy_helper.from_array(np.array(255, np.float32), "most")])


def write_models(repository: Path) -> None:
    """preprocess -> two parallel models -> combine, and around that another ensemble."""
    models.write(repository, "preprocess", to_float())
    models.write(repository, "left", affine(2, 1))
    models.write(repository, "right", affine(3, -1))
    models.write(repository, "combine", models.sum_and_difference())
    # Written before what it runs, in the alphabet as in time: the order of loading is found.
    ensemble(
        repository,
        "a_whole",
        {"pixels": ("UINT8", [4])},
        {"sum": ("FP32", [4]), "difference": ("FP32", [-1])},
        [
            ("combine", {"a": "l", "b": "r"}, {"sum": "sum", "difference": "difference"}),
            ("left", {"x": "values"}, {"y": "l"}),
            ("right", {"x": "values"}, {"y": "r"}),
            ("preprocess", {"raw": "pixels"}, {"values": "values"}),
        ],
    )
    ensemble(
        repository,
        "a_nested",
        {"image": ("UINT8", [4])},
        {"answer": ("FP32", [4]), "sum": ("FP32", [4])},
        [
            ("a_whole", {"pixels": "image"}, {"sum": "sum", "difference": "difference"}),
            ("left", {"x": "difference"}, {"y": "answer"}),
        ],
    )


def expected(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the difference that `a_whole` answers, in numpy."""
    values = pixels.astype(np.float32) / np.float32(255)
    left, right = 2 * values + 1, 3 * values - 1
    return left + right, left - right


def pixels_of(rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 4), np.uint8)


def ask(
    client: triton.InferenceServerClient,
    name: str,
    tensor: str,
    array: np.ndarray,
    datatype: str = "UINT8",
    **options: object,
) -> triton.InferResult:
    given = triton.InferInput(tensor, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return client.infer(name, [given], client_timeout=SECONDS, **options)


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def until(condition: Callable[[], bool]) -> None:
    """Asks the server again and again."""
    ends = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < ends, "it did not happen"


def index(client: triton.InferenceServerClient) -> dict[str, tuple[str, str]]:
    return {model.name: (model.state, model.reason) for model in client.get_model_repository_index().models}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("ensembles")
    write_models(repository)
    models.write(repository, "mean", models.batch_mean())
    ensemble(
        repository, "centred", {"x": ("FP32", [2])}, {"y": ("FP32", [2])}, [("mean", {"x": "x"}, {"centred": "y"})]
    )
    models.write(repository, "embedding", models.embedding())
    ensemble(
        repository,
        "words",
        {"ids": ("INT64", [3])},
        {"vectors": ("FP32", [3, 2])},
        [("embedding", {"ids": "ids"}, {"vectors": "vectors"})],
    )
    models.write(repository, "text", models.identity(TensorProto.STRING))
    ensemble(
        repository,
        "texts",
        {"x": ("STRING", [3])},
        {"z": ("STRING", [3])},
        [("text", {"x": "x"}, {"y": "y"}), ("text", {"x": "y"}, {"y": "z"})],
    )
    models.write(repository, "classifier", models.classifier())
    ensemble(
        repository,
        "classes",
        {"image": ("UINT8", [4, 4, 1])},
        {"scores": ("FP32", [3])},
        [("classifier", {"image": "image"}, {"probabilities": "scores"})],
    )
    ensemble(
        repository,
        "unbatched",
        {"x": ("FP32", [2, 4])},
        {"y": ("FP32", [-1, 4])},
        [("left", {"x": "x"}, {"y": "y"})],
        max_batch_size=0,
    )
    halving = models.model(
        [helper.make_node("Slice", ["x", "start", "end", "axis"], ["y"])],
        [models.tensor("x", TensorProto.FLOAT, ("batch", 4))],
        [models.tensor("y", TensorProto.FLOAT, ("rows", 4))],
        [
            onnx.numpy_helper.from_array(np.array([value], np.int64), name)
            for name, value in {"start": 0, "end": 1, "axis": 0}.items()
        ],
    )
    models.write(repository, "first_row", halving)
    ensemble(
        repository,
        "loses_rows",
        {"x": ("FP32", [4])},
        {"y": ("FP32", [4])},
        [("first_row", {"x": "x"}, {"y": "t"}), ("left", {"x": "t"}, {"y": "y"})],
    )
    ensemble(repository, "wrong", {"x": ("FP32", [5])}, {"y": ("FP32", [4])}, [("left", {"x": "x"}, {"y": "y"})])
    for one, other in (("ring_a", "ring_b"), ("ring_b", "ring_c"), ("ring_c", "ring_a")):
        ensemble(repository, one, {"x": ("FP32", [4])}, {"y": ("FP32", [4])}, [(other, {"x": "x"}, {"y": "y"})])
    return repository


@pytest.fixture(scope="module")
def client(folder: Path, transport: str) -> Iterator[triton.InferenceServerClient]:
    with (
        serve(folder, "--transport", transport, "--max-batch-size", "8") as server,
        triton.InferenceServerClient(server.address) as connected,
    ):
        yield connected


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_a_pipeline_answers_what_its_steps_do_one_after_the_other(
    client: triton.InferenceServerClient, rows: int
) -> None:
    pixels = pixels_of(rows)
    total, difference = expected(pixels)
    whole = ask(client, "a_whole", "pixels", pixels)
    np.testing.assert_allclose(whole.as_numpy("sum"), total, rtol=1e-6)
    np.testing.assert_allclose(whole.as_numpy("difference"), difference, rtol=1e-5, atol=1e-6)
    assert whole.get_response().model_name == "a_whole"
    assert whole.get_response().model_version == "1"
    nested = ask(client, "a_nested", "image", pixels)
    np.testing.assert_allclose(nested.as_numpy("sum"), total, rtol=1e-6)
    np.testing.assert_allclose(nested.as_numpy("answer"), 2 * difference + 1, rtol=1e-5, atol=1e-6)


def test_outputs_are_answered_as_asked(client: triton.InferenceServerClient) -> None:
    one = ask(client, "a_whole", "pixels", pixels_of(2), outputs=[triton.InferRequestedOutput("difference")])
    assert [output.name for output in one.get_response().outputs] == ["difference"]
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    classes = ask(client, "classes", "image", image, outputs=[triton.InferRequestedOutput("scores", class_count=1)])
    best = int(models.classify(image).argmax())
    assert classes.as_numpy("scores")[0, 0].endswith(f":{best}:{models.CLASSES[best]}".encode())


def test_text_passes_through(client: triton.InferenceServerClient) -> None:
    words = np.array([[b"one", b"", "drei \u00e4".encode()], [b"4", b"5", b"6"]], object)
    assert (ask(client, "texts", "x", words, "BYTES").as_numpy("z") == words).all()


def test_models_without_a_batch_axis_take_their_part(client: triton.InferenceServerClient) -> None:
    x = np.array([[1, 2], [3, 6], [5, 7]], np.float32)
    np.testing.assert_allclose(ask(client, "centred", "x", x, "FP32").as_numpy("y"), x - x.mean(axis=0))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(ask(client, "unbatched", "x", x, "FP32").as_numpy("y"), 2 * x + 1)


def test_a_step_that_loses_rows_fails_the_request(client: triton.InferenceServerClient) -> None:
    x = np.ones((1, 4), np.float32)
    assert (ask(client, "loses_rows", "x", x, "FP32").as_numpy("y") == 3).all()
    code, why = refused(lambda: ask(client, "loses_rows", "x", np.ones((2, 4), np.float32), "FP32"))
    assert code == "INTERNAL"
    assert why == (
        "step 1 (model 'first_row'): tensor 't' has shape [1, 4] for a request of 2 rows: "
        "expected as many rows as went in"
    )


def test_a_step_that_fails_is_named(client: triton.InferenceServerClient) -> None:
    ids = np.array([[1, 2, 99]], np.int64)
    direct = refused(lambda: ask(client, "embedding", "ids", ids, "INT64"))
    code, why = refused(lambda: ask(client, "words", "ids", ids, "INT64"))
    assert (code, why) == (direct[0], f"step 1 (model 'embedding'): {direct[1]}")
    assert ask(client, "words", "ids", np.array([[1, 2, 3]], np.int64), "INT64").as_numpy("vectors").shape == (1, 3, 2)


def test_requests_are_held_against_the_ensemble(client: triton.InferenceServerClient) -> None:
    assert refused(lambda: ask(client, "a_whole", "pixels", pixels_of(2)[:, :3])) == (
        "INVALID_ARGUMENT",
        "input 'pixels' is expected to have shape [-1, 4], got [2, 3]",
    )
    assert refused(lambda: ask(client, "a_whole", "image", pixels_of(2)))[0] == "INVALID_ARGUMENT"


def test_an_ensemble_is_described_as_a_model(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("a_nested")
    metadata = client.get_model_metadata("a_whole")
    assert metadata.platform == "ensemble"
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs] == [
        ("pixels", "UINT8", [-1, 4])
    ]
    assert [(tensor.name, list(tensor.shape)) for tensor in metadata.outputs] == [
        ("sum", [-1, 4]),
        ("difference", [-1, -1]),
    ]
    assert index(client)["a_whole"] == ("READY", "")


def test_an_ensemble_answers_its_configuration(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("a_whole").config
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("a_whole", "ensemble", "", 8)
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["combine", "left", "right", "preprocess"]
    assert dict(config.ensemble_scheduling.step[0].input_map) == {"a": "l", "b": "r"}
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("sum", [4]), ("difference", [-1])]
    assert not config.HasField("dynamic_batching")
    assert (list(config.instance_group), config.default_model_filename, dict(config.parameters)) == ([], "", {})


def test_an_ensemble_and_its_steps_are_counted(client: triton.InferenceServerClient) -> None:
    def counted(name: str) -> tuple[int, int]:
        (model,) = client.get_inference_statistics(name).model_stats
        return model.inference_count, model.inference_stats.success.count

    before = {name: counted(name) for name in ("a_nested", "a_whole", "left")}
    ask(client, "a_nested", "image", pixels_of(3))
    grown = {name: tuple(map(operator.sub, counted(name), counts)) for name, counts in before.items()}
    assert grown == {"a_nested": (3, 1), "a_whole": (3, 1), "left": (6, 2)}


def test_what_does_not_fit_together_is_not_served(client: triton.InferenceServerClient) -> None:
    state, why = index(client)["wrong"]
    assert state == "UNAVAILABLE"
    assert why == (
        "tensor 'x' differs between its ends: made by input 'x' of the ensemble, FP32 [-1, 5]; "
        "taken by step 1 (model 'left') as input 'x', FP32 [-1, 4]"
    )
    assert index(client)["ring_b"] == (
        "UNAVAILABLE",
        "its steps lead back to itself: 'ring_b' runs 'ring_c' runs 'ring_a' runs 'ring_b'",
    )
    assert not client.is_model_ready("ring_a")


def test_tensors_in_shared_memory_go_through(client: triton.InferenceServerClient) -> None:
    pixels = pixels_of(20)
    key = f"/inferd-test-{os.getpid()}-{uuid.uuid4().hex}"
    handle = shared_memory.create_shared_memory_region("pipeline", key, 400, create_only=True)
    try:
        shared_memory.set_shared_memory_region(handle, [pixels])
        client.register_system_shared_memory("pipeline", key, 400)
        given = triton.InferInput("pixels", [20, 4], "UINT8")
        given.set_shared_memory("pipeline", 80)
        wanted = triton.InferRequestedOutput("sum")
        wanted.set_shared_memory("pipeline", 320, 80)
        client.infer("a_whole", [given], outputs=[wanted], client_timeout=SECONDS)
        answer = shared_memory.get_contents_as_numpy(handle, np.float32, [20, 4], 80)
        np.testing.assert_allclose(answer, expected(pixels)[0], rtol=1e-6)
    finally:
        client.unregister_system_shared_memory("pipeline")
        shared_memory.destroy_shared_memory_region(handle)


def test_many_callers_get_their_own_rows(client: triton.InferenceServerClient) -> None:
    failures: list[BaseException] = []

    def call(seed: int) -> None:
        try:
            for turn in range(20):
                pixels = pixels_of(1 + (seed + turn) % 11, seed * 100 + turn)
                total, difference = expected(pixels)
                name, tensor = (("a_whole", "pixels"), ("a_nested", "image"))[turn % 2]
                result = ask(client, name, tensor, pixels)
                np.testing.assert_allclose(result.as_numpy("sum"), total, rtol=1e-6)
                if turn % 2:
                    np.testing.assert_allclose(result.as_numpy("answer"), 2 * difference + 1, rtol=1e-5, atol=1e-6)
                direct = ask(client, "left", "x", total, "FP32").as_numpy("y")
                np.testing.assert_allclose(direct, 2 * total + 1, rtol=1e-6)
        except BaseException as error:  # noqa: BLE001 - none is expected, and each is shown
            failures.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


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
