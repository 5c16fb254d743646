"""Pipelines: ensembles whose steps run other models of the repository inside the server."""

from __future__ import annotations

import operator
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from support import models
from support.ensembles import SECONDS, ask, ensemble, expected, index, pixels_of, refused, write_models
from support.server import serve
from tritonclient.utils import shared_memory


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
