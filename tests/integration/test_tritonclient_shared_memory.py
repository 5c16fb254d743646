"""System shared memory as tritonclient uses it, and what is left of the server where a client misuses it."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from inferd_server.shared_memory.system import FOLDER
from support import models
from support.limits import MAX_BATCH_SIZE, MAX_MESSAGE_SIZE
from support.server import ServerProcess, serve
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory

IMAGES = np.random.default_rng(11).integers(0, 256, (300, 4, 4, 1), np.uint8)

Make = Callable[..., Any]


@pytest.fixture
def region(client: triton.InferenceServerClient) -> Iterator[Make]:
    """Makes a region of a name and size, registered; afterwards nothing is registered, and nothing left in /dev/shm."""
    handles = []

    def make(name: str, nbytes: int, *arrays: np.ndarray) -> Any:
        key = f"/inferd-test-{os.getpid()}-{uuid.uuid4().hex}"
        handle = shared_memory.create_shared_memory_region(name, key, nbytes, create_only=True)
        handles.append(handle)
        shared_memory.set_shared_memory_region(handle, list(arrays))
        client.register_system_shared_memory(name, key, nbytes)
        return handle

    yield make
    client.unregister_system_shared_memory()
    for handle in handles:
        shared_memory.destroy_shared_memory_region(handle)
    # Other processes of the test run have theirs at the same time.
    assert not [name for name in os.listdir(FOLDER) if name.startswith(f"inferd-test-{os.getpid()}-")]
    assert not client.get_system_shared_memory_status().regions


def file_of(handle: Any) -> Path:
    return FOLDER / handle._shm_key.removeprefix("/")


def shared(
    name: str, shape: tuple[int, ...], datatype: str, region: str, nbytes: int, offset: int = 0
) -> triton.InferInput:
    made = triton.InferInput(name, list(shape), datatype)
    made.set_shared_memory(region, nbytes, offset)
    return made


def sent(name: str, array: np.ndarray, datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def wanted(name: str, region: str, nbytes: int, offset: int = 0) -> triton.InferRequestedOutput:
    made = triton.InferRequestedOutput(name)
    made.set_shared_memory(region, nbytes, offset)
    return made


def refusal(client: triton.InferenceServerClient, code: str, call: Callable[[], object]) -> str:
    """The message of a call that must fail with `code`; afterwards the server must still serve."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    answer = client.infer("classifier", [sent("image", IMAGES[:2], "UINT8")]).as_numpy("probabilities")
    np.testing.assert_allclose(answer, models.classify(IMAGES[:2]), rtol=1e-5)
    return str(caught.value.message())


# More rows than a batch takes are split, and put together in the region.
@pytest.mark.parametrize("rows", [1, 7, MAX_BATCH_SIZE + 1, 300])
def test_input_and_output_in_shared_memory(client: triton.InferenceServerClient, region: Make, rows: int) -> None:
    handle = region("all", 300 * 16 + 300 * 12, IMAGES[:rows])
    for request_id in ("1", "2", ""):
        result = client.infer(
            "classifier",
            [shared("image", (rows, 4, 4, 1), "UINT8", "all", rows * 16)],
            outputs=[wanted("probabilities", "all", 300 * 12, 300 * 16)],
            request_id=request_id,
        )
        output = result.get_output("probabilities")
        assert (output.name, output.datatype, list(output.shape)) == ("probabilities", "FP32", [rows, 3])
        assert output.parameters["shared_memory_region"].string_param == "all"
        assert output.parameters["shared_memory_offset"].int64_param == 300 * 16
        assert output.parameters["shared_memory_byte_size"].int64_param == rows * 12
        assert result.get_response().id == request_id
        answer = shared_memory.get_contents_as_numpy(handle, np.float32, output.shape, 300 * 16)
        np.testing.assert_allclose(answer, models.classify(IMAGES[:rows]), rtol=1e-5)


def test_a_tensor_larger_than_a_message_may_be(client: triton.InferenceServerClient, region: Make) -> None:
    long = np.ones((2, MAX_MESSAGE_SIZE // 4), np.float32)
    region("long", long.nbytes, long)
    answer = client.infer("ragged", [shared("x", long.shape, "FP32", "long", long.nbytes)]).as_numpy("total")
    assert answer.tolist() == [long.shape[1]] * 2


def test_some_tensors_in_shared_memory_and_some_in_the_message(
    client: triton.InferenceServerClient, region: Make
) -> None:
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.full((2, 4), 3, np.float32)
    handle = region("mixed", 128, a, b)
    in_region = {"a": shared("a", (2, 4), "FP32", "mixed", 32), "b": shared("b", (2, 4), "FP32", "mixed", 32, 32)}
    in_message = {"a": sent("a", a), "b": sent("b", b)}
    for first, second in (("a", "b"), ("b", "a")):
        for inputs in (
            [in_region[first], in_message[second]],
            [in_message[first], in_region[second]],
            [in_message[first], in_message[second]],
        ):
            for shared_output, other in (("sum", "difference"), ("difference", "sum")):
                outputs = [wanted(shared_output, "mixed", 32, 64), triton.InferRequestedOutput(other)]
                for order in (outputs, outputs[::-1]):
                    result = client.infer("pair", inputs, outputs=order)
                    expected = {"sum": a + b, "difference": a - b}
                    np.testing.assert_array_equal(result.as_numpy(other), expected[other])
                    answer = shared_memory.get_contents_as_numpy(handle, np.float32, (2, 4), 64)
                    np.testing.assert_array_equal(answer, expected[shared_output])
        plain = client.infer("pair", [in_region[first], in_region[second]])
        np.testing.assert_array_equal(plain.as_numpy("sum"), a + b)


@pytest.mark.parametrize("datatype", [name for name in models.ELEMENT_TYPES if name not in ("BYTES", "BF16")])
def test_every_datatype(client: triton.InferenceServerClient, region: Make, datatype: str) -> None:
    dtype = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}.get(datatype, datatype.lower())
    array = np.array([[0, 1, 1]]).astype(dtype)
    handle = region("typed", 100, array)
    client.infer(
        f"identity_{datatype}",
        [shared("x", (1, 3), datatype, "typed", array.nbytes)],
        outputs=[wanted("y", "typed", array.nbytes, 51)],
    )
    assert file_of(handle).read_bytes()[51 : 51 + array.nbytes] == array.tobytes()


def test_text(client: triton.InferenceServerClient, region: Make) -> None:
    text = np.array([["é".encode(), b"", b"x" * 100]], object)
    data = serialize_byte_tensor(text)
    nbytes = len(data.item())
    handle = region("text", 1000, data)
    for wrong, message in ((nbytes - 1, "element 2 expects 100 bytes"), (nbytes + 4, "expects 3 elements, got more")):
        inputs = [shared("x", (1, 3), "BYTES", "text", wrong)]
        assert message in refusal(client, "INVALID_ARGUMENT", lambda: client.infer("identity_BYTES", inputs))  # noqa: B023
    inputs = [shared("x", (1, 3), "BYTES", "text", nbytes)]
    result = client.infer("identity_BYTES", inputs, outputs=[wanted("y", "text", 500, 500)])
    assert result.get_output("y").parameters["shared_memory_byte_size"].int64_param == nbytes
    assert shared_memory.get_contents_as_numpy(handle, np.object_, [1, 3], 500).tolist() == text.tolist()
    assert client.infer("identity_BYTES", inputs).as_numpy("y").tolist() == text.tolist()


def test_zero_rows(client: triton.InferenceServerClient, region: Make) -> None:
    region("none", 8)
    result = client.infer(
        "classifier",
        [shared("image", (0, 4, 4, 1), "UINT8", "none", 0)],
        outputs=[wanted("probabilities", "none", 8)],
    )
    assert list(result.get_output("probabilities").shape) == [0, 3]


def test_many_callers_in_shared_memory_and_out_of_it_get_their_own_rows(
    client: triton.InferenceServerClient, region: Make
) -> None:
    handle = region("many", IMAGES.nbytes + 200 * 36, IMAGES)

    def ask(number: int) -> None:
        rows = 1 + number % 3
        mine = IMAGES[number : number + rows]
        inputs = [sent("image", mine, "UINT8")]
        if number % 4:
            inputs = [shared("image", mine.shape, "UINT8", "many", mine.nbytes, number * 16)]
        if number % 2:
            answer = client.infer("classifier", inputs).as_numpy("probabilities")
        else:
            place = IMAGES.nbytes + number * 36
            client.infer("classifier", inputs, outputs=[wanted("probabilities", "many", 36, place)])
            answer = shared_memory.get_contents_as_numpy(handle, np.float32, (rows, 3), place)
        np.testing.assert_allclose(answer, models.classify(mine), rtol=1e-5)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(200)))


def test_status(client: triton.InferenceServerClient, region: Make) -> None:
    handles = {name: region(name, 64) for name in ("one", "other")}
    client.register_system_shared_memory("part", handles["one"]._shm_key, 24, offset=40)
    regions = client.get_system_shared_memory_status(as_json=True)["regions"]
    assert set(regions) == {"one", "other", "part"}
    assert regions["one"] == {"name": "one", "key": handles["one"]._shm_key, "byte_size": "64"}
    only = client.get_system_shared_memory_status("part").regions
    assert [(each.name, each.offset, each.byte_size) for each in only.values()] == [("part", 40, 24)]
    client.unregister_system_shared_memory("one")
    client.unregister_system_shared_memory("never there")
    assert set(client.get_system_shared_memory_status().regions) == {"other", "part"}
    message = refusal(client, "NOT_FOUND", lambda: client.get_system_shared_memory_status("one"))
    assert message == "shared memory region 'one' is not registered"


def test_a_name_is_registered_once(client: triton.InferenceServerClient, region: Make) -> None:
    key = region("twice", 64)._shm_key
    message = refusal(client, "ALREADY_EXISTS", lambda: client.register_system_shared_memory("twice", key, 64))
    assert "'twice' is registered already" in message


@pytest.mark.parametrize(
    ("key", "nbytes", "text"),
    [
        ("/never-made", 1, "which cannot be opened: No such file"),
        ("../../etc/passwd", 1, "expected the name of a shared memory object"),
        ("", 1, "expected the name of a shared memory object"),
    ],
)
def test_what_cannot_be_registered(client: triton.InferenceServerClient, key: str, nbytes: int, text: str) -> None:
    call = lambda: client.register_system_shared_memory("bad", key, nbytes)  # noqa: E731
    assert text in refusal(client, "INVALID_ARGUMENT", call)


def test_tensors_that_do_not_fit(client: triton.InferenceServerClient, region: Make) -> None:
    region("small", 40, IMAGES[:2])
    good = shared("image", (2, 4, 4, 1), "UINT8", "small", 32)
    for inputs, outputs, code, text in (
        ([shared("image", (2, 4, 4, 1), "UINT8", "small", 31)], None, "INVALID_ARGUMENT", "expects 32 bytes, got 31"),
        ([shared("image", (2, 4, 4, 1), "UINT8", "small", 32, 9)], None, "INVALID_ARGUMENT", "within the 40 bytes"),
        ([shared("image", (2, 4, 4, 1), "UINT8", "other", 32)], None, "NOT_FOUND", "region 'other', which is not"),
        ([good], [wanted("probabilities", "other", 24)], "NOT_FOUND", "region 'other', which is not registered"),
        ([good], [wanted("probabilities", "small", 9, 32)], "INVALID_ARGUMENT", "got 9 bytes from offset 32"),
        ([good], [wanted("probabilities", "small", 8, 32)], "INVALID_ARGUMENT", "has 24 bytes, and 8 bytes of shared"),
    ):
        call = lambda: client.infer("classifier", inputs, outputs=outputs)  # noqa: B023, E731
        assert text in refusal(client, code, call)


def test_a_client_that_cuts_its_file_short_gets_an_error_and_the_others_their_answers(
    client: triton.InferenceServerClient, region: Make, server: ServerProcess
) -> None:
    handle = region("cut", 4096, IMAGES[:2])
    inputs = [shared("image", (2, 4, 4, 1), "UINT8", "cut", 32)]
    outputs = [wanted("probabilities", "cut", 24, 100)]
    client.infer("classifier", inputs, outputs=outputs)
    os.truncate(file_of(handle), 16)
    assert "has become shorter" in refusal(client, "INVALID_ARGUMENT", lambda: client.infer("classifier", inputs))
    sound = [sent("image", IMAGES[:2], "UINT8")]
    call = lambda: client.infer("classifier", sound, outputs=outputs)  # noqa: E731
    assert "has become shorter" in refusal(client, "INVALID_ARGUMENT", call)
    assert file_of(handle).stat().st_size == 16

    def ask(number: int) -> str:
        try:
            answer = client.infer("classifier", inputs if number % 8 == 0 else sound).as_numpy("probabilities")
        except InferenceServerException as error:
            return str(error.status())
        np.testing.assert_allclose(answer, models.classify(IMAGES[:2]), rtol=1e-5)
        return "answered"

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(ask, range(80)))
    assert outcomes == ["StatusCode.INVALID_ARGUMENT" if number % 8 == 0 else "answered" for number in range(80)]
    assert server.process.poll() is None


def test_a_file_that_is_cut_and_made_longer_all_the_time_never_ends_the_server(
    client: triton.InferenceServerClient, region: Make, server: ServerProcess
) -> None:
    path = file_of(region("cut", 4096 * 64))
    done = threading.Event()

    def cut() -> None:
        while not done.is_set():
            os.truncate(path, 0)
            os.truncate(path, 4096 * 64)

    rows = 300
    inputs = [shared("image", (rows, 4, 4, 1), "UINT8", "cut", rows * 16)]
    outputs = [wanted("probabilities", "cut", rows * 12, rows * 16)]
    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        for _ in range(100):
            try:
                client.infer("classifier", inputs, outputs=outputs)
            except InferenceServerException as error:
                assert error.status() == "StatusCode.INVALID_ARGUMENT"  # noqa: PT017 - either outcome is right
    finally:
        done.set()
        cutter.join()
    assert server.process.poll() is None


def test_regions_come_and_go_under_load(client: triton.InferenceServerClient, region: Make) -> None:
    handle = region("busy", 4096, IMAGES[:2])
    key = handle._shm_key
    inputs = [shared("image", (2, 4, 4, 1), "UINT8", "busy", 32)]
    outputs = [wanted("probabilities", "busy", 24, 100)]
    expected = models.classify(IMAGES[:2])
    done = threading.Event()

    def ask() -> set[str]:
        outcomes = set()
        while not done.is_set():
            try:
                client.infer("classifier", inputs, outputs=outputs)
                answer = shared_memory.get_contents_as_numpy(handle, np.float32, (2, 3), 100)
                np.testing.assert_allclose(answer, expected, rtol=1e-5)
                outcomes.add("answered")
            except InferenceServerException as error:
                outcomes.add(str(error.status()))
        return outcomes

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for _ in range(100):
                client.unregister_system_shared_memory("busy")
                client.register_system_shared_memory("busy", key, 4096)
        finally:
            done.set()
        outcomes = set().union(*(each.result() for each in asking))
    assert "answered" in outcomes
    assert outcomes <= {"answered", "StatusCode.NOT_FOUND"}


def test_cuda_shared_memory_is_not_there_and_says_so(client: triton.InferenceServerClient) -> None:
    assert not client.get_cuda_shared_memory_status().regions
    # What every client does before it begins.
    client.unregister_cuda_shared_memory()
    message = refusal(client, "NOT_FOUND", lambda: client.get_cuda_shared_memory_status("gpu"))
    assert "shared memory region 'gpu' is not registered" in message
    with pytest.raises(InferenceServerException, match="no model of this server runs on a GPU: use system") as caught:
        client.register_cuda_shared_memory("gpu", b"AAAA", 0, 64)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize("arguments", [("--shared-memory", "off"), ("--grpc-address", "0.0.0.0"), ("--workers", "2")])
def test_where_it_is_off_nothing_can_be_registered(
    repository: Path, transport: str, arguments: tuple[str, ...]
) -> None:
    with (
        serve(repository, "--transport", transport, *arguments) as running,
        triton.InferenceServerClient(running.address.replace("0.0.0.0", "127.0.0.1")) as client,
    ):
        assert "system_shared_memory" not in client.get_server_metadata().extensions
        assert not client.get_system_shared_memory_status().regions
        client.unregister_system_shared_memory()
        with pytest.raises(InferenceServerException, match="send tensors in the message") as caught:
            client.register_system_shared_memory("r", "/key", 64)
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        inputs = [shared("image", (2, 4, 4, 1), "UINT8", "r", 32)]
        refusal(client, "NOT_FOUND", lambda: client.infer("classifier", inputs))
