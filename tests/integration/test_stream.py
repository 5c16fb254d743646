"""ModelStreamInfer: with tritonclient, its asyncio client, and at the level of gRPC."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from queue import Queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.methods import METHODS
from inferd_protocol.reasons import REASON_KEY
from support import models
from support.limits import MAX_MESSAGE_SIZE
from support.server import ServerProcess, serve
from tritonclient.utils import InferenceServerException

SECONDS = 60.0
STREAM, INFER = METHODS["ModelStreamInfer"].path, METHODS["ModelInfer"].path
ERRORS_END_IT = (("triton_grpc_error", "true"),)
IMAGES = np.random.default_rng(7).integers(0, 256, (300, 4, 4, 1), np.uint8)

Outcome = tuple[triton.InferResult | None, InferenceServerException | None]


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def images(array: np.ndarray, name: str = "image") -> Sequence[triton.InferInput]:
    made = triton.InferInput(name, list(array.shape), "UINT8")
    made.set_data_from_numpy(array)
    return [made]


def request(rows: int = 1, request_id: str = "", model: str = "slow", **parameters: object) -> bytes:
    """A request to a model that is slow, the slower the more rows."""
    return pb.ModelInferRequest(
        model_name=model,
        id=request_id,
        parameters={
            name: pb.InferParameter(bool_param=value)
            if isinstance(value, bool)
            else pb.InferParameter(int64_param=value)  # type: ignore[arg-type]
            for name, value in parameters.items()
        },
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[rows, 256])],
        raw_input_contents=[bytes(rows * 1024)],
    ).SerializeToString()


class Requests:
    """What a client sends on a stream, while it is open."""

    def __init__(self, *messages: bytes) -> None:
        self._queue: Queue[bytes | None] = Queue()
        for message in messages:
            self.send(message)

    def send(self, message: bytes) -> None:
        self._queue.put(message)

    def close(self) -> Requests:
        self._queue.put(None)
        return self

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> bytes:
        if (message := self._queue.get()) is None:
            raise StopIteration
        return message


def stream(channel: grpc.Channel, requests: Requests, **options: object) -> Iterator[pb.ModelStreamInferResponse]:
    call = channel.stream_stream(STREAM, response_deserializer=pb.ModelStreamInferResponse.FromString)
    made: Iterator[pb.ModelStreamInferResponse] = call(requests, **{"timeout": SECONDS, **options})
    return made


def answers(channel: grpc.Channel, *messages: bytes, **options: object) -> list[pb.ModelStreamInferResponse]:
    return list(stream(channel, Requests(*messages).close(), **options))


def ids(given: Sequence[pb.ModelStreamInferResponse]) -> list[str]:
    return [answer.infer_response.id for answer in given]


def ending(call: Iterator[pb.ModelStreamInferResponse]) -> tuple[list[pb.ModelStreamInferResponse], grpc.RpcError]:
    """The answers of a stream that fails, and how it does."""
    given: list[pb.ModelStreamInferResponse] = []
    with pytest.raises(grpc.RpcError) as caught:
        given.extend(call)
    return given, caught.value


def test_tritonclient_streams(client: triton.InferenceServerClient) -> None:
    outcomes: Queue[Outcome] = Queue()
    client.start_stream(lambda result, error: outcomes.put((result, error)), stream_timeout=SECONDS)
    for number in range(200):
        rows = IMAGES[number : number + 1 + number % 3]
        client.async_stream_infer(
            "classifier", images(rows), request_id=str(number), enable_empty_final_response=number % 2 == 0
        )
    client.stop_stream()
    assert outcomes.qsize() == 200
    for number in range(200):
        result, error = outcomes.get_nowait()
        assert error is None
        assert result is not None
        response = result.get_response()
        assert response.id == str(number), "answers come in the order of the requests"
        assert response.parameters["triton_final_response"].bool_param
        expected = models.classify(IMAGES[number : number + 1 + number % 3])
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, rtol=1e-5)


def test_an_error_does_not_end_tritonclients_stream(client: triton.InferenceServerClient) -> None:
    outcomes: Queue[Outcome] = Queue()
    client.start_stream(lambda result, error: outcomes.put((result, error)), stream_timeout=SECONDS)
    client.async_stream_infer("classifier", images(IMAGES[:1], "picture"))
    client.async_stream_infer("nothing", images(IMAGES[:1]))
    client.async_stream_infer("classifier", images(IMAGES[:1]))
    client.stop_stream()
    (_, first), (_, second), (third, none) = (outcomes.get_nowait() for _ in range(3))
    assert first is not None
    assert "input 'picture' is unknown" in first.message()
    assert second is not None
    assert "model 'nothing' is not known" in second.message()
    assert none is None
    assert third is not None
    assert third.as_numpy("probabilities").shape == (1, 3)


def test_tritonclient_may_have_the_first_error_end_the_stream(client: triton.InferenceServerClient) -> None:
    outcomes: Queue[Outcome] = Queue()
    client.start_stream(
        lambda result, error: outcomes.put((result, error)),
        stream_timeout=SECONDS,
        headers={"triton_grpc_error": "true"},
    )
    client.async_stream_infer("classifier", images(IMAGES[:1]))
    client.async_stream_infer("nothing", images(IMAGES[:1]))
    assert outcomes.get(timeout=SECONDS)[1] is None
    error = outcomes.get(timeout=SECONDS)[1]
    assert error is not None
    assert error.status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def test_tritonclients_asyncio_streams(server: ServerProcess) -> None:
    async def send() -> AsyncIterator[dict[str, object]]:
        for number in range(50):
            yield {"model_name": "classifier", "inputs": images(IMAGES[number : number + 1]), "request_id": str(number)}

    async def ask() -> list[Outcome]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            return [outcome async for outcome in client.stream_infer(send(), stream_timeout=SECONDS)]

    outcomes = asyncio.run(ask())
    assert [error for _, error in outcomes] == [None] * 50
    for number, (result, _) in enumerate(outcomes):
        assert result is not None
        assert result.get_response().id == str(number)
        expected = models.classify(IMAGES[number : number + 1])
        np.testing.assert_allclose(result.as_numpy("probabilities"), expected, rtol=1e-5)


def test_a_stream_answers_while_it_is_open(channel: grpc.Channel) -> None:
    requests = Requests()
    call = stream(channel, requests)
    for number in range(3):
        requests.send(request(request_id=str(number)))
        assert next(call).infer_response.id == str(number)
    requests.close()
    assert list(call) == []


def test_a_stream_without_requests_ends_well(channel: grpc.Channel) -> None:
    assert answers(channel) == []


def test_a_slow_request_is_answered_before_a_fast_one_that_came_after_it(channel: grpc.Channel) -> None:
    slow, fast = request(16, "slow", model="slower"), request(1, "fast")
    assert ids(answers(channel, slow, fast)) == ["slow", "fast"]


def test_no_rows_and_no_id(channel: grpc.Channel) -> None:
    (answer,) = answers(channel, request(0))
    assert list(answer.infer_response.outputs[0].shape) == [0, 256]
    assert answer.infer_response.parameters["triton_final_response"].bool_param


@pytest.mark.parametrize(
    ("broken", "request_id", "text"),
    [
        (b"\xff\xff\xff", "", "the bytes received are no ModelInferRequest"),
        (
            request(request_id="seven") + pb.ModelInferRequest(raw_input_contents=[b""]).SerializeToString(),
            "seven",
            "one an input, got 2",
        ),
        (request(request_id="seven", model="nothing"), "seven", "model 'nothing' is not known"),
        (request(request_id="seven", model="corrupt"), "seven", "is not ready"),
        (request(request_id="seven", sequence_id=1), "seven", "asks for a sequence"),
    ],
)
def test_errors_are_answers_with_the_id_of_their_request(
    channel: grpc.Channel, broken: bytes, request_id: str, text: str
) -> None:
    first, second, third = answers(channel, request(request_id="a"), broken, request(request_id="b"))
    assert (first.infer_response.id, third.infer_response.id) == ("a", "b")
    assert (first.error_message, third.error_message) == ("", "")
    assert text in second.error_message
    assert second.infer_response.id == request_id
    assert second.infer_response.parameters["triton_final_response"].bool_param
    assert not second.infer_response.outputs


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (b"\xff\xff\xff", grpc.StatusCode.INTERNAL),
        (request(model="nothing"), grpc.StatusCode.NOT_FOUND),
        (request(model="corrupt"), grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_with_the_header_the_first_error_ends_the_stream_with_its_status(
    channel: grpc.Channel, broken: bytes, code: grpc.StatusCode
) -> None:
    requests = Requests(request(request_id="a"), broken, request(request_id="b"))
    given, error = ending(stream(channel, requests, metadata=ERRORS_END_IT))
    assert ids(given) == ["a"]
    assert error.code() is code
    if code is grpc.StatusCode.UNAVAILABLE:
        assert dict(error.trailing_metadata())[REASON_KEY] == "loading"  # type: ignore[attr-defined]
    requests.close()


def test_another_value_of_the_header_changes_nothing(channel: grpc.Channel) -> None:
    messages = request(model="nothing"), request(request_id="b")
    assert ids(answers(channel, *messages, metadata=(("triton_grpc_error", "false"),))) == ["", "b"]


def test_a_queue_timeout_within_a_stream(channel: grpc.Channel) -> None:
    first, second = answers(channel, request(32, model="slower"), request(1, "late", model="slower", timeout=1))
    assert first.error_message == ""
    assert "longer than its timeout" in second.error_message
    assert second.infer_response.id == "late"


def test_a_message_over_the_limit_ends_the_stream(channel: grpc.Channel) -> None:
    requests = Requests(request(2 * MAX_MESSAGE_SIZE // 1024))
    _, error = ending(stream(channel, requests))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    requests.close()
    assert answers(channel, request(request_id="a")), "the server goes on"


def test_an_answer_over_the_limit_is_an_error(repository: Path, transport: str) -> None:
    def classes(rows: int, request_id: str) -> bytes:
        every = {"classification": pb.InferParameter(int64_param=3)}
        return pb.ModelInferRequest(
            model_name="classifier",
            id=request_id,
            inputs=[pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[rows, 4, 4, 1])],
            outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="probabilities", parameters=every)],
            raw_input_contents=[bytes(rows * 16)],
        ).SerializeToString()

    with (
        serve(repository, "--transport", transport, "--grpc-max-message-size", "1500") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        first, second = answers(channel, classes(60, "seven"), classes(1, "eight"))
        assert "bytes, expected at most 1500: send fewer rows" in first.error_message
        assert first.infer_response.id == "seven"
        assert second.error_message == ""


def test_a_deadline_ends_the_stream_and_what_waits_is_not_run(channel: grpc.Channel) -> None:
    requests = Requests(*(request(8, model="slower") for _ in range(200)))
    _, error = ending(stream(channel, requests, timeout=0.3))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    requests.close()
    # 200 runs of the slower model would take minutes.
    assert channel.unary_unary(INFER)(request(8, model="slower"), timeout=20)


def test_a_cancelled_stream_is_forgotten(channel: grpc.Channel) -> None:
    requests = Requests(*(request(8, model="slower") for _ in range(200)))
    call = stream(channel, requests)
    assert next(call)
    call.cancel()  # type: ignore[attr-defined]
    _, error = ending(call)
    assert error.code() is grpc.StatusCode.CANCELLED
    requests.close()
    assert channel.unary_unary(INFER)(request(8, model="slower"), timeout=20)


def test_a_reader_who_does_not_read_is_not_sent_more_than_he_can_hold(channel: grpc.Channel) -> None:
    """The requests stop being read: their client sees it, because gRPC takes no more of them from it."""
    taken = 0
    settled = threading.Event()

    def send() -> Iterator[bytes]:
        nonlocal taken
        while not settled.is_set():
            yield request(64)
            taken += 1

    call = stream(channel, send())  # type: ignore[arg-type]
    # Other calls are answered meanwhile; once nothing more is taken between them, the stream stands still.
    before = -1
    while before != taken:
        before = taken
        for _ in range(20):
            channel.unary_unary(INFER)(request(8), timeout=SECONDS)
    assert 0 < taken < 1000
    settled.set()
    given = list(call)
    assert len(given) >= before
    assert {answer.error_message for answer in given} == {""}


@pytest.mark.parametrize("half_closed", [False, True])
def test_a_server_that_stops_answers_what_it_has_read(repository: Path, transport: str, half_closed: bool) -> None:
    with (
        serve(repository, "--transport", transport, "--max-batch-size", "8") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        # The first takes five runs, in which the few bytes of the others are read.
        rows = [40, *[1] * 7]
        requests = Requests(*(request(count, str(number), model="slower") for number, count in enumerate(rows)))
        if half_closed:
            requests.close()
        call = stream(channel, requests)
        given = [next(call)]
        server.process.send_signal(signal.SIGTERM)
        if half_closed:
            given += list(call)
        else:
            rest, error = ending(call)
            given += rest
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(error.trailing_metadata())[REASON_KEY] == "draining"  # type: ignore[attr-defined]
            requests.close()
        assert ids(given) == [str(number) for number in range(8)]
        assert {answer.error_message for answer in given} == {""}
        assert server.wait() == 0
        assert server.other_output == []


def test_a_stream_is_left_to_itself_when_its_client_vanishes(server: ServerProcess) -> None:
    channel = grpc.insecure_channel(server.address)
    requests = Requests(*(request(8, model="slower") for _ in range(100)))
    assert next(stream(channel, requests))
    channel.close()
    requests.close()
    with grpc.insecure_channel(server.address) as another:
        assert another.unary_unary(INFER)(request(8, model="slower"), timeout=20)


def test_many_streams_at_once(server: ServerProcess) -> None:
    given: list[list[str]] = []

    def ask() -> None:
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as mine:
            given.append(ids(answers(mine, *(request(request_id=str(number)) for number in range(100)))))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert given == [[str(number) for number in range(100)]] * 8
