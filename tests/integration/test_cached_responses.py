"""The response cache of a real server: what is answered without a run, and what is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from support import models
from support.server import serve
from tritonclient.utils import InferenceServerException

BOUND = 4 * 1024 * 1024
SECONDS = 60
CACHED = "response_cache { enable: true }"


def infer(client: triton.InferenceServerClient, name: str, **options: object) -> triton.InferResult:
    """Asks a model of x, float rows."""
    array = options.pop("x")
    assert isinstance(array, np.ndarray)
    x = triton.InferInput("x", array.shape, "FP32")
    x.set_data_from_numpy(array)
    return client.infer(name, [x], **options)


def write_dice(path: Path) -> None:
    """x [batch, 3] -> y, its random number: a run that can be told from every other."""
    random = onnx.helper.make_node("RandomUniformLike", ["x"], ["y"])
    shape = ("batch", 3)
    x, y = (models.tensor(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    models.write(path, "dice", models.model([random], [x], [y]))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cached")
    write_dice(folder)
    (folder / "dice" / "config.pbtxt").write_text(f"max_batch_size: 0 {CACHED}")
    for name, made in (
        ("slow", models.slow(multiplications=400)),
        ("pair", models.sum_and_difference()),
        ("classifier", models.classifier()),
        ("text", models.identity(models.ELEMENT_TYPES["BYTES"], ("batch",))),
        ("embedding", models.embedding()),
    ):
        models.write(folder, name, made)
        (folder / name / "config.pbtxt").write_text(CACHED)
    return folder


@pytest.fixture(scope="module")
def client(repository: Path, transport: str) -> Iterator[triton.InferenceServerClient]:
    arguments = ("--transport", transport, "--response-cache-bytes", str(BOUND), "--max-batch-size", "64")
    with (
        serve(repository, *arguments) as server,
        triton.InferenceServerClient(server.address) as connected,
    ):
        yield connected


def test_the_same_contents_are_run_once_and_every_answer_has_its_own_id(client: triton.InferenceServerClient) -> None:
    x = np.arange(3, dtype=np.float32).reshape(1, 3)
    first = infer(client, "dice", x=x, request_id="one")
    again = infer(client, "dice", x=x, request_id="two")
    nameless = infer(client, "dice", x=x)
    for answer, request_id in ((first, "one"), (again, "two"), (nameless, "")):
        assert answer.get_response().id == request_id
        np.testing.assert_array_equal(answer.as_numpy("y"), first.as_numpy("y"))
    other = infer(client, "dice", x=x + 1)
    assert not np.array_equal(other.as_numpy("y"), first.as_numpy("y"))
    # The same bytes in another shape are another request.
    wide, tall = np.zeros((1, 3), np.float32), np.zeros((2, 3), np.float32)
    assert infer(client, "dice", x=wide).as_numpy("y").shape == (1, 3)
    assert infer(client, "dice", x=tall).as_numpy("y").shape == (2, 3)


def test_a_slow_model_answers_the_second_time_without_a_run(client: triton.InferenceServerClient) -> None:
    x = np.random.default_rng(5).random((64, 256), np.float32)
    began = time.perf_counter()
    first = infer(client, "slow", x=x).as_numpy("y")
    ran = time.perf_counter() - began
    best = min(_seconds(client, x, first) for _ in range(5))
    assert best < ran / 2


def _seconds(client: triton.InferenceServerClient, x: np.ndarray, expected: np.ndarray) -> float:
    began = time.perf_counter()
    found = infer(client, "slow", x=x).as_numpy("y")
    took = time.perf_counter() - began
    np.testing.assert_array_equal(found, expected)
    return took


def test_other_outputs_of_the_same_contents_are_answered_rightly(client: triton.InferenceServerClient) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensors = []
    for name, array in (("a", rows), ("b", rows * 3)):
        tensors.append(triton.InferInput(name, array.shape, "FP32"))
        tensors[-1].set_data_from_numpy(array)
    for names in ((), ("sum",), ("difference", "sum"), ("difference",), ()):
        # In whichever order the inputs come.
        for given in (tensors, tensors[::-1]):
            answer = client.infer("pair", given, outputs=[triton.InferRequestedOutput(name) for name in names])
            assert [output.name for output in answer.get_response().outputs] == list(names or ("sum", "difference"))
            for name, expected in (("sum", rows * 4), ("difference", rows * -2)):
                if name in (names or (name,)):
                    np.testing.assert_array_equal(answer.as_numpy(name), expected)
    swapped = [triton.InferInput(name, rows.shape, "FP32") for name in "ab"]
    swapped[0].set_data_from_numpy(rows * 3)
    swapped[1].set_data_from_numpy(rows)
    np.testing.assert_array_equal(client.infer("pair", swapped).as_numpy("difference"), rows * 2)


def test_classification_and_the_tensor_share_a_run(client: triton.InferenceServerClient) -> None:
    images = np.full((1, 4, 4, 1), 200, np.uint8)
    image = triton.InferInput("image", images.shape, "UINT8")
    image.set_data_from_numpy(images)
    for _ in range(2):
        np.testing.assert_allclose(
            client.infer("classifier", [image]).as_numpy("probabilities"), models.classify(images), rtol=1e-5
        )
        for count in (1, 3):
            wanted = triton.InferRequestedOutput("probabilities", class_count=count)
            answer = client.infer("classifier", [image], outputs=[wanted]).as_numpy("probabilities")
            assert [line.split(b":")[2].decode() for line in answer[0]] == ["high", "middle", "low"][:count]


def test_texts_divided_otherwise_are_told_apart(client: triton.InferenceServerClient) -> None:
    for elements in ([b"ab", b"c"], [b"a", b"bc"], [b"ab", b"c"], [b"abc", b""]):
        x = triton.InferInput("x", [2], "BYTES")
        x.set_data_from_numpy(np.array(elements, object))
        assert client.infer("text", [x]).as_numpy("y").tolist() == elements


def test_failures_are_not_kept(client: triton.InferenceServerClient) -> None:
    ids = triton.InferInput("ids", [1, 3], "INT64")
    ids.set_data_from_numpy(np.array([[0, 1, 99]]))
    for _ in range(2):
        with pytest.raises(InferenceServerException, match="the model refuses the inputs"):
            client.infer("embedding", [ids])
    ids.set_data_from_numpy(np.array([[0, 1, 9]]))
    for _ in range(2):
        assert client.infer("embedding", [ids]).as_numpy("vectors").shape == (1, 3, 2)


def test_callers_at_once_get_their_own_answers(client: triton.InferenceServerClient, transport: str) -> None:
    wrong: list[object] = []

    def call(seed: int) -> None:
        values = np.random.default_rng(seed).integers(0, 5, 100)
        for value in values:
            rows = np.full((1, 4), value, np.float32)
            tensors = []
            for name in "ab":
                tensors.append(triton.InferInput(name, rows.shape, "FP32"))
                tensors[-1].set_data_from_numpy(rows)
            answer = client.infer("pair", tensors, request_id=f"{seed}-{value}")
            if answer.as_numpy("sum")[0, 0] != 2 * value or answer.get_response().id != f"{seed}-{value}":
                wrong.append((transport, seed, value))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_version_loaded_again_gives_its_own_answers(tmp_path: Path, transport: str) -> None:
    file = models.write(tmp_path, "m", models.constant(1))
    (tmp_path / "m" / "config.pbtxt").write_text(CACHED)
    x = np.zeros((1, 3), np.float32)
    arguments = ("--model-control-mode", "poll", "--repository-poll-secs", "0.02", "--response-cache-bytes", str(BOUND))
    with (
        serve(tmp_path, "--transport", transport, *arguments) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        for value in (1, 2, 3):
            onnx.save(models.constant(value), file)
            ends = time.monotonic() + SECONDS
            while (found := float(infer(client, "m", x=x).as_numpy("y")[0, 0])) != value:
                # The version that serves until then, and no other.
                assert found == value - 1
                assert time.monotonic() < ends
            assert all(infer(client, "m", x=x).as_numpy("y")[0, 0] == value for _ in range(20))


def test_memory_stays_bounded_under_requests_that_never_come_again(repository: Path, transport: str) -> None:
    chance = np.random.default_rng(1)
    with (
        serve(repository, "--transport", transport, "--response-cache-bytes", str(BOUND)) as server,
        triton.InferenceServerClient(server.address) as client,
    ):

        def ask(times: int) -> None:
            # 64 KiB an answer: 64 fill the cache.
            for _ in range(times):
                infer(client, "dice", x=chance.random((5461, 3), np.float32))

        ask(200)
        before = _resident(server.process.pid)
        ask(1000)
        grown = _resident(server.process.pid) - before
    # Without a bound it would be 62 MiB.
    assert grown < 16 * 1024 * 1024


def _resident(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def test_without_room_a_model_is_served_uncached_and_the_log_says_so(tmp_path: Path, transport: str) -> None:
    write_dice(tmp_path)
    (tmp_path / "dice" / "config.pbtxt").write_text(f"max_batch_size: 0 {CACHED}")
    x = np.zeros((1, 3), np.float32)
    with (
        serve(tmp_path, "--transport", transport) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        one, other = (infer(client, "dice", x=x).as_numpy("y") for _ in range(2))
        assert not np.array_equal(one, other)
        (line,) = (line for line in server.lines if line["level"] == "warning")
        assert "model 'dice' asks for a response cache and is served without" in line["message"]


def test_a_model_that_does_not_ask_is_not_cached(tmp_path: Path, transport: str) -> None:
    write_dice(tmp_path)
    x = np.zeros((1, 3), np.float32)
    with (
        serve(tmp_path, "--transport", transport, "--response-cache-bytes", str(BOUND)) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        one, other = (infer(client, "dice", x=x).as_numpy("y") for _ in range(2))
    assert not np.array_equal(one, other)
