"""Loading, unloading, publishing and labelling while the server serves."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from inferd_protocol import golden
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.golden import Golden, Tolerance
from inferd_protocol.methods import METHODS
from inferd_protocol.reasons import REASON_KEY
from support import models
from support.server import ServerProcess, serve
from support.waiting import until
from tritonclient.utils import InferenceServerException

SECONDS = 60
POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "0.02")
EXPLICIT = ("--model-control-mode", "explicit")
TOLERANCES = {"y": Tolerance(0.01, 0.0)}
X = np.zeros((1, 3), np.float32)


def publish(
    repository: Path,
    value: float,
    version: int,
    name: str = "m",
    beside: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Puts a version into place as publishers do: whole, by a rename. `beside` adds to the files of the version."""
    aside = repository / f".{name}-{version}"
    path = models.write(aside, name, models.constant(value), version)
    beside(path)
    target = repository / name / str(version)
    target.parent.mkdir(exist_ok=True)
    path.parent.rename(target)
    shutil.rmtree(aside)
    return target / path.name


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path, 1, 1)
    return tmp_path


@pytest.fixture
def polled(repository: Path, transport: str) -> Iterator[triton.InferenceServerClient]:
    with (
        serve(repository, "--transport", transport, *POLL) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        yield client


@pytest.fixture
def explicit(repository: Path, transport: str) -> Iterator[triton.InferenceServerClient]:
    with (
        serve(repository, "--transport", transport, *EXPLICIT) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        yield client


def answer(client: triton.InferenceServerClient, version: str = "", name: str = "m") -> tuple[float, str]:
    """What the model says, and the version that said it."""
    x = triton.InferInput("x", X.shape, "FP32")
    x.set_data_from_numpy(X)
    result = client.infer(name, [x], model_version=version)
    return float(result.as_numpy("y")[0, 0]), result.get_response().model_version


def index(client: triton.InferenceServerClient) -> dict[tuple[str, str], tuple[str, str]]:
    return {
        (model.name, model.version): (model.state, model.reason) for model in client.get_model_repository_index().models
    }


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def test_what_is_published_is_served_and_what_is_withdrawn_is_not(
    repository: Path, polled: triton.InferenceServerClient
) -> None:
    publish(repository, 2, 2)
    until(lambda: answer(polled) == (2, "2"))
    until(lambda: ("m", "1") not in index(polled))
    assert refused(lambda: answer(polled, "1"))[0] == "NOT_FOUND"
    shutil.rmtree(repository / "m" / "2")
    until(lambda: answer(polled) == (1, "1"))
    publish(repository, 5, 1, "other")
    until(lambda: polled.is_model_ready("other"))
    shutil.rmtree(repository / "other")
    until(lambda: not polled.is_model_ready("other"))
    assert answer(polled) == (1, "1")


def test_a_version_that_does_not_load_leaves_the_former_one_serving(
    repository: Path, polled: triton.InferenceServerClient
) -> None:
    broken = repository / "m" / "2" / "model.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"half a model")
    until(lambda: index(polled).get(("m", "2"), ("",))[0] == "UNAVAILABLE")
    assert "is no model that ONNX Runtime" in index(polled)["m", "2"][1]
    assert answer(polled) == (1, "1")
    onnx.save(models.constant(2), broken)
    until(lambda: answer(polled) == (2, "2"))


def test_files_that_change_in_place_are_taken_or_the_former_ones_kept(
    repository: Path, polled: triton.InferenceServerClient
) -> None:
    file = repository / "m" / "1" / "model.onnx"
    onnx.save(models.constant(7), file)
    until(lambda: answer(polled) == (7, "1"))
    file.write_bytes(b"torn")
    until(lambda: "were not taken" in index(polled)["m", "1"][1])
    assert index(polled)["m", "1"][0] == "READY"
    assert answer(polled) == (7, "1")
    (repository / "m" / "config.pbtxt").write_text("no such field: 1")
    onnx.save(models.constant(8), file)
    until(lambda: "config.pbtxt cannot be read" in index(polled)["m", "1"][1])
    assert answer(polled) == (7, "1")
    (repository / "m" / "config.pbtxt").unlink()
    until(lambda: answer(polled) == (8, "1"))
    assert index(polled)["m", "1"] == ("READY", "")


def with_golden(file: Path, expected: float) -> None:
    """Puts golden samples beside a model that is being published, whose answer to everything they say is `expected`."""
    samples = Golden({"x": np.ones((4, 3), np.float32)}, {"y": np.full((4, 1), expected, np.float32)}, TOLERANCES)
    golden.write(file.parent / "golden.npz", samples)


def test_a_version_whose_golden_answers_differ_is_refused_and_the_former_one_serves(
    repository: Path, transport: str
) -> None:
    with (
        serve(repository, "--transport", transport, *POLL) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        # Weights that are not those of the export, and the samples that are.
        publish(repository, 2.5, 2, beside=lambda file: with_golden(file, 2))
        until(lambda: index(client).get(("m", "2"), ("",))[0] == "UNAVAILABLE")
        why = index(client)["m", "2"][1]
        assert "output 'y' differs by up to 0.5 from the answers of golden.npz, expected 0.01 + 0 * |answer|" in why
        assert any(why in line["message"] and line["level"] == "error" for line in server.lines)
        assert answer(client) == (1, "1")
        assert refused(lambda: answer(client, "2"))[0] == "UNAVAILABLE"
        publish(repository, 3, 3, beside=lambda file: with_golden(file, 3))
        until(lambda: answer(client) == (3, "3"))
        # Torn in place: the model that serves goes on, and says why the change was not taken.
        samples = repository / "m" / "3" / "golden.npz"
        samples.write_bytes(samples.read_bytes()[:-40])
        until(lambda: "golden.npz holds no golden samples" in index(client)["m", "3"][1])
        assert answer(client) == (3, "3")


def test_a_repository_that_is_away_takes_nothing_with_it(
    repository: Path, polled: triton.InferenceServerClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    away = tmp_path_factory.mktemp("away") / "m"
    (repository / "m").rename(away)
    publish(away.parent, 3, 3)
    assert answer(polled) == (1, "1")
    away.rename(repository / "m")
    until(lambda: answer(polled) == (3, "3"))


def test_nothing_is_loaded_by_request_where_control_is_off(repository: Path, transport: str) -> None:
    with serve(repository, "--transport", transport) as server, grpc.insecure_channel(server.address) as channel:
        for method, request in (
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m")),
            ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m")),
        ):
            call = channel.unary_unary(METHODS[method].path, type(request).SerializeToString, bytes)
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(caught.value.trailing_metadata())[REASON_KEY] == "control_off"


def test_models_come_and_go_by_request(repository: Path, explicit: triton.InferenceServerClient) -> None:
    assert explicit.is_server_ready(), "it was to load none"
    assert index(explicit) == {("m", ""): ("UNAVAILABLE", "it is not loaded")}
    explicit.load_model("m")
    assert answer(explicit) == (1, "1")
    assert index(explicit) == {("m", "1"): ("READY", "")}
    publish(repository, 2, 2)
    assert answer(explicit) == (1, "1"), "nobody asked for the new one"
    explicit.load_model("m")
    assert answer(explicit) == (2, "2")
    explicit.unload_model("m")
    assert not explicit.is_model_ready("m")
    assert index(explicit) == {("m", "2"): ("UNAVAILABLE", "it was unloaded")}
    assert refused(lambda: answer(explicit)) == ("UNAVAILABLE", "model 'm' is not ready: version 2: it was unloaded")
    explicit.load_model("m")
    assert answer(explicit) == (2, "2")


def test_a_load_that_fails_says_why_and_changes_nothing(
    repository: Path, explicit: triton.InferenceServerClient
) -> None:
    assert refused(lambda: explicit.load_model("absent"))[0] == "NOT_FOUND"
    assert refused(lambda: explicit.unload_model("m"))[0] == "NOT_FOUND"
    explicit.load_model("m")
    broken = repository / "m" / "2"
    broken.mkdir()
    code, why = refused(lambda: explicit.load_model("m"))
    assert (code, why) == (
        "INTERNAL",
        "model 'm' failed to load: version 2: version 2 has no model.onnx: expected m/2/model.onnx",
    )
    assert answer(explicit) == (1, "1")


def test_a_config_and_files_come_with_the_request(explicit: triton.InferenceServerClient) -> None:
    explicit.load_model("m", config=json.dumps({"maxBatchSize": 2}))
    assert answer(explicit) == (1, "1")
    code, why = refused(lambda: explicit.load_model("m", config='{"input": [{"name": "nobody"}]}'))
    assert code == "INTERNAL"
    assert "nobody" in why
    assert answer(explicit) == (1, "1")
    content = models.constant(9).SerializeToString()
    explicit.load_model("m", config="{}", files={"file:4/model.onnx": content})
    assert answer(explicit) == (9, "4")
    explicit.load_model("m")
    assert answer(explicit) == (1, "1")


@pytest.mark.parametrize(
    "path", ["file:../1/model.onnx", "file:1/../../x", "file:model.onnx", "file:/etc/x", "file:01/m"]
)
def test_a_file_may_not_leave_its_version(explicit: triton.InferenceServerClient, path: str) -> None:
    code, why = refused(lambda: explicit.load_model("m", config="{}", files={path: b"x"}))
    assert code == "INVALID_ARGUMENT"
    assert path in why


def label(server: str, name: str, version: int, model: str = "m") -> None:
    request = pb.RepositoryModelLoadRequest(model_name=model)
    request.parameters[f"label:{name}"].int64_param = version
    with grpc.insecure_channel(server) as channel:
        channel.unary_unary(
            METHODS["RepositoryModelLoad"].path, pb.RepositoryModelLoadRequest.SerializeToString, bytes
        )(request, timeout=SECONDS)


def test_labels_are_versions_that_move_only_to_what_is_ready(repository: Path, transport: str) -> None:
    publish(repository, 2, 2)
    (repository / "m" / "config.pbtxt").write_text("version_policy { all {} }")
    with (
        serve(repository, "--transport", transport, *POLL) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        label(server.address, "stable", 1)
        label(server.address, "canary", 2)
        assert (answer(client, "stable"), answer(client, "canary")) == ((1, "1"), (2, "2"))
        assert client.is_model_ready("m", "stable")
        label(server.address, "stable", 2)
        assert answer(client, "stable") == (2, "2")
        for name, version, code in (("stable", 3, "NOT_FOUND"), ("7", 1, "INVALID_ARGUMENT")):
            with pytest.raises(grpc.RpcError) as caught:
                label(server.address, name, version)
            assert caught.value.code().name == code
        assert answer(client, "stable") == (2, "2")
        label(server.address, "canary", 0)
        code, why = refused(lambda: answer(client, "canary"))
        assert code == "INVALID_ARGUMENT"
        assert "one of its labels ['stable']" in why


def test_labels_stand_in_the_config_too_until_a_request_moves_them(repository: Path, transport: str) -> None:
    publish(repository, 2, 2)
    (repository / "m" / "config.pbtxt").write_text(
        """parameters { key: "label:stable" value { string_value: "1" } }
        parameters { key: "label:absent" value { string_value: "9" } }"""
    )
    with (
        serve(repository, "--transport", transport, *POLL) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert (answer(client), answer(client, "stable")) == ((2, "2"), (1, "1"))
        assert refused(lambda: answer(client, "absent"))[0] == "INVALID_ARGUMENT"
        parameters = client.get_model_config("m").config.parameters
        assert parameters["label:stable"].string_value == "1"
        assert parameters["provider"].string_value == "CPUExecutionProvider"
        label(server.address, "stable", 2)
        assert answer(client, "stable") == (2, "2")


def test_a_labelled_version_outlives_the_policy(repository: Path, transport: str) -> None:
    with (
        serve(repository, "--transport", transport, *POLL) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        label(server.address, "stable", 1)
        publish(repository, 2, 2)
        until(lambda: answer(client) == (2, "2"))
        assert answer(client, "stable") == (1, "1")
        label(server.address, "stable", 2)
        until(lambda: ("m", "1") not in index(client))


def test_no_request_fails_while_versions_are_swapped(repository: Path, polled: triton.InferenceServerClient) -> None:
    answers: Counter[tuple[float, str]] = Counter()
    failures: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers[answer(polled)] += 1
            except Exception as error:  # noqa: BLE001 - none is expected, and each is shown
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    last = 12
    for version in range(2, last + 1):
        publish(repository, version, version)
        until(lambda version=version: answer(polled)[1] == str(version))  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert all(value == float(version) for value, version in answers), "each answer is of one version"
    assert {version for _, version in answers} >= {"2", str(last)}


def test_an_unload_finishes_what_was_accepted(tmp_path: Path, transport: str) -> None:
    models.write(tmp_path, "slow", models.slow(multiplications=1000))
    with (
        serve(tmp_path, "--transport", transport, *EXPLICIT, "--load-model", "slow", "--max-batch-size", "1") as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        signature = client.get_model_metadata("slow").inputs[0]
        array = np.zeros([1, *signature.shape[1:]], np.float32)
        x = triton.InferInput(signature.name, array.shape, "FP32")
        x.set_data_from_numpy(array)
        done: list[object] = []
        ended = threading.Semaphore(0)

        def arrived(result: object, error: object) -> None:
            done.append(error)
            ended.release()

        for _ in range(6):
            client.async_infer("slow", [x], arrived)
        until(lambda: bool(done))
        client.unload_model("slow")
        for _ in range(6):
            assert ended.acquire(timeout=SECONDS)
        accepted = [error for error in done if error is None]
        assert accepted
        assert all("unload" in str(error) for error in done if error is not None)


def resident(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_the_memory_of_unloaded_models_is_given_back(tmp_path: Path) -> None:
    size = 64 * 2**20
    models.write(tmp_path, "big", models.constant(1, weights=size // 4))
    models.write(tmp_path, "small", models.constant(1))
    with (
        serve(tmp_path, *EXPLICIT, "--load-model", "small") as server,
        triton.InferenceServerClient(server.address) as client,
    ):

        def load_and_unload() -> tuple[int, int]:
            client.load_model("big")
            assert answer(client, name="big")[0] == 1
            loaded = resident(server)
            client.unload_model("big")
            return loaded, resident(server)

        # The C library keeps an arena for each of some threads: it grows by 15 MB at first, then no more.
        _, without = load_and_unload()
        loaded, after = max(load_and_unload() for _ in range(10))
        assert loaded - without > 0.9 * size
        assert after - without < 0.4 * size, "it grew by less than one model in ten loads"


def test_explicit_control_asks_for_one_worker(repository: Path) -> None:
    server = ServerProcess(repository, *EXPLICIT, "--workers", "2")
    assert server.wait() == 2
    assert any("explicit works with one worker" in line for line in server.other_output)
