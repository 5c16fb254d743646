"""Calls at the level of gRPC: bytes, deadlines, cancellation, health, reflection, TLS, start and stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import trustme
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.command import main
from inferd_protocol.datatypes import BYTES
from inferd_protocol.methods import METHODS, SERVICE
from inferd_protocol.reasons import REASON_KEY
from inferd_protocol.tensors import encode_raw
from support import models
from support.limits import MAX_BATCH_SIZE
from support.metrics import scrape, total, wait_for, wait_until_taken
from support.server import ServerProcess, serve

SECONDS = 60.0
INFER = METHODS["ModelInfer"].path
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def slow_request(rows: int, *, model: str = "slow", **parameters: int) -> bytes:
    """A request to the slow model, which takes a while for each of its batches."""
    return pb.ModelInferRequest(
        model_name=model,
        parameters={name: pb.InferParameter(int64_param=value) for name, value in parameters.items()},
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[rows, 256])],
        raw_input_contents=[bytes(rows * 1024)],
    ).SerializeToString()


def infer(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(INFER)


def typed(datatype: str, **contents: object) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name=f"identity_{datatype}",
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name="x",
                datatype=datatype,
                shape=[1, 3],
                contents=pb.InferTensorContents(**contents),  # type: ignore[arg-type]
            )
        ],
    )


@pytest.mark.parametrize(
    ("datatype", "contents", "raw"),
    [
        ("BOOL", {"bool_contents": [True, False, True]}, b"\x01\x00\x01"),
        ("INT8", {"int_contents": [-1, 0, 127]}, b"\xff\x00\x7f"),
        ("UINT8", {"uint_contents": [255, 0, 1]}, b"\xff\x00\x01"),
        ("INT16", {"int_contents": [-1, 0, 1]}, np.array([-1, 0, 1], "<i2").tobytes()),
        ("UINT16", {"uint_contents": [65535, 0, 1]}, np.array([65535, 0, 1], "<u2").tobytes()),
        ("INT32", {"int_contents": [-1, 0, 1]}, np.array([-1, 0, 1], "<i4").tobytes()),
        ("UINT32", {"uint_contents": [1, 2, 3]}, np.array([1, 2, 3], "<u4").tobytes()),
        ("INT64", {"int64_contents": [-1, 0, 1]}, np.array([-1, 0, 1], "<i8").tobytes()),
        ("UINT64", {"uint64_contents": [2**64 - 1, 0, 1]}, np.array([2**64 - 1, 0, 1], "<u8").tobytes()),
        ("FP32", {"fp32_contents": [1.5, 0, -2]}, np.array([1.5, 0, -2], "<f4").tobytes()),
        ("FP64", {"fp64_contents": [1.5, 0, -2]}, np.array([1.5, 0, -2], "<f8").tobytes()),
        ("BYTES", {"bytes_contents": [b"a", b"", b"bc"]}, b"\1\0\0\0a\0\0\0\0\2\0\0\0bc"),
    ],
)
def test_typed_contents_are_answered_raw(
    channel: grpc.Channel, datatype: str, contents: dict[str, object], raw: bytes
) -> None:
    answer = infer(channel)(typed(datatype, **contents).SerializeToString(), timeout=SECONDS)
    response = pb.ModelInferResponse.FromString(answer)
    assert list(response.raw_output_contents) == [raw]
    assert not response.outputs[0].HasField("contents")


def failure(channel: grpc.Channel, message: bytes, **options: float) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel)(message, **{"timeout": SECONDS, **options})
    return caught.value


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda request: request.raw_input_contents.append(bytes(12)),
            "'x' has typed contents beside raw_input_contents",
        ),
        (lambda request: request.inputs[0].ClearField("contents"), "'x' of shape [1, 3] expects 3 elements"),
        (lambda request: request.inputs[0].contents.fp32_contents.append(1), "expects 3 elements"),
    ],
)
def test_contents_that_contradict_themselves(channel: grpc.Channel, change, text: str) -> None:  # type: ignore[no-untyped-def]
    request = typed("FP32", fp32_contents=[1, 2, 3])
    change(request)
    error = failure(channel, request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in error.details()


@pytest.mark.parametrize(
    ("buffers", "text"),
    [
        ([], "expects 3 elements"),
        ([bytes(11)], "tensor 'x' of datatype FP32 and shape [1, 3] expects 12 bytes, got 11"),
        ([bytes(12), b""], "expected to hold 1 buffers, one an input, got 2"),
    ],
)
def test_buffers_that_do_not_match(channel: grpc.Channel, buffers: list[bytes], text: str) -> None:
    request = typed("FP32")
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.extend(buffers)
    error = failure(channel, request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in error.details()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata"])
def test_bytes_that_are_no_message_are_internal(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHODS[method].path)(b"\xff\xff\xff", timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def busy(server: ServerProcess, channel: grpc.Channel) -> grpc.Future:
    """A request of many batches to the model `slower`, which by now runs, and keeps what comes next waiting."""
    # The server is shared: what other tests have left in the queue is over when this is answered.
    assert infer(channel)(slow_request(1, model="slower"), timeout=SECONDS)
    rows = total(scrape(server), "inferd_rows_total", model="slower")
    running: grpc.Future = infer(channel).future(slow_request(30 * MAX_BATCH_SIZE, model="slower"), timeout=SECONDS)
    # One row may be that of the call before, which is counted after it is answered.
    wait_for(server, "inferd_rows_total", rows + 2, model="slower")
    return running


def test_a_deadline_that_passes_in_the_queue_ends_the_call_and_not_the_server(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    running = busy(server, channel)
    error = failure(channel, slow_request(1, model="slower"), timeout=0.01)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert running.result()
    assert infer(channel)(slow_request(1), timeout=SECONDS)


def test_a_queue_timeout_is_unavailable_with_its_reason(server: ServerProcess, channel: grpc.Channel) -> None:
    running = busy(server, channel)
    error = failure(channel, slow_request(1, model="slower", timeout=1))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(error.trailing_metadata())[REASON_KEY] == "queue_timeout"  # type: ignore[attr-defined]
    assert running.result()


def test_a_cancelled_call_is_forgotten(channel: grpc.Channel) -> None:
    running = infer(channel).future(slow_request(rows=900), timeout=SECONDS)
    waiting = [infer(channel).future(slow_request(rows=900), timeout=SECONDS) for _ in range(20)]
    for call in waiting:
        call.cancel()
    assert running.result()
    assert infer(channel)(slow_request(1), timeout=SECONDS)


def test_a_loading_model_has_its_reason(channel: grpc.Channel) -> None:
    error = failure(channel, pb.ModelInferRequest(model_name="corrupt").SerializeToString())
    assert dict(error.trailing_metadata())[REASON_KEY] == "loading"  # type: ignore[attr-defined]


def test_health_check_and_reflection(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS).status == SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"), timeout=SECONDS)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) >= {SERVICE, "grpc.health.v1.Health"}
    pool = DescriptorPool(database)
    assert len(pool.FindServiceByName(SERVICE).methods) == len(METHODS)
    assert pool.FindMessageTypeByName("inference.ModelConfig").fields_by_name["max_batch_size"].number == 4
    assert pool.FindServiceByName("grpc.health.v1.Health")


def test_a_full_queue_refuses_at_once_with_its_reason(repository: Path, transport: str) -> None:
    with (
        serve(repository, "--transport", transport, "--max-queue-size", "1") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [infer(channel).future(slow_request(rows=2000), timeout=SECONDS) for _ in range(12)]
        errors = [error for call in calls if (error := call.exception()) is not None]
        assert 0 < len(errors) < len(calls)
        assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}
        assert {dict(error.trailing_metadata())[REASON_KEY] for error in errors} == {"queue_full"}
        assert infer(channel)(slow_request(1), timeout=SECONDS)


def test_the_queue_is_bounded_by_what_bytes_tensors_really_hold(repository: Path, transport: str) -> None:
    """An element of BYTES is a pointer in memory: the bound is on what it points to."""
    words = np.array([[b"x" * 100_000] * 3], object)
    message = pb.ModelInferRequest(
        model_name="identity_BYTES",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="BYTES", shape=words.shape)],
        raw_input_contents=[encode_raw(words, BYTES)],
    ).SerializeToString()
    with (
        serve(repository, "--transport", transport, "--max-queue-bytes", "500000") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        calls = [infer(channel).future(message, timeout=SECONDS) for _ in range(200)]
        reasons = {
            dict(error.trailing_metadata()).get(REASON_KEY) for call in calls if (error := call.exception()) is not None
        }
        assert reasons == {"queue_full"}
        assert infer(channel)(message, timeout=SECONDS)


def test_sigterm_says_so_finishes_what_runs_and_exits_0(repository: Path, transport: str) -> None:
    with (
        serve(repository, "--transport", transport, "--drain-delay-secs", "0.2") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert next(watched).status == SERVING
        calls = [infer(channel).future(slow_request(rows=4000), timeout=SECONDS) for _ in range(4)]
        wait_until_taken(server, "slow", 4)
        server.process.send_signal(signal.SIGTERM)
        assert next(watched).status == NOT_SERVING
        for call in calls:
            assert len(pb.ModelInferResponse.FromString(call.result()).raw_output_contents[0]) == 4000 * 1024
        assert server.wait() == 0
        assert server.other_output == []


def test_those_who_watch_hear_of_a_stop_and_do_not_hold_it_up(repository: Path, transport: str) -> None:
    server = ServerProcess(repository, "--transport", transport, "--exit-timeout-secs", "600")
    try:
        server.wait_for("ready")
        with grpc.insecure_channel(server.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watching = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS) for _ in range(3)]
            assert [next(each).status for each in watching] == [SERVING] * 3
            # One that leaves takes nothing from the others.
            watching.pop().cancel()
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == SERVING
            server.process.send_signal(signal.SIGTERM)
            for each in watching:
                assert next(each).status == NOT_SERVING
                with pytest.raises(grpc.RpcError) as caught:
                    next(each)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert server.wait() == 0
    finally:
        server.kill()


def test_a_second_signal_ends_it_at_once(repository: Path, transport: str) -> None:
    server = ServerProcess(repository, "--transport", transport, "--drain-delay-secs", "600")
    try:
        server.wait_for("ready")
        server.process.send_signal(signal.SIGTERM)
        with grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            assert any(answer.status == NOT_SERVING for answer in watch), "the first signal has arrived"
            server.process.send_signal(signal.SIGINT)
            assert server.wait() == 1
    finally:
        server.kill()


def test_no_model_at_all_is_live_and_not_ready(tmp_path: Path, transport: str) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with serve(tmp_path, "--transport", transport) as server, grpc.insecure_channel(server.address) as channel:
        assert server.lines[-1]["event"] == "not_ready"
        assert server.lines[-1]["unavailable"] == ["broken"]
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status == NOT_SERVING
        live = channel.unary_unary(METHODS["ServerLive"].path)(b"", timeout=SECONDS)
        ready = channel.unary_unary(METHODS["ServerReady"].path)(b"", timeout=SECONDS)
        assert pb.ServerLiveResponse.FromString(live).live
        assert not pb.ServerReadyResponse.FromString(ready).ready


def test_a_required_model_decides_readiness(repository: Path, transport: str) -> None:
    with serve(repository, "--transport", transport, "--required-model", "corrupt") as server:
        assert server.lines[-1]["event"] == "not_ready"


def test_the_ready_line_says_what_is_served(server: ServerProcess) -> None:
    (line,) = [line for line in server.lines if line.get("event") == "ready"]
    assert "classifier/2" in line["models"]
    assert set(line["unavailable"]) == {"corrupt", "empty"}
    assert line["providers"] == ["CPUExecutionProvider"]
    assert line["address"] == server.address


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a certificate of its for localhost and 127.0.0.1, and the key."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(folder / "root.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(folder / "cert.pem", append=number > 0)
    return folder


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(repository: Path, certificates: Path, mutual: bool) -> None:
    root, cert, key = (certificates / f"{name}.pem" for name in ("root", "cert", "key"))
    flags = ["--grpc-use-ssl", "--grpc-server-cert", str(cert), "--grpc-server-key", str(key)]
    if mutual:
        flags += ["--grpc-use-ssl-mutual", "--grpc-root-cert", str(root)]
    with serve(repository, *flags) as server:
        pair = (key.read_bytes(), cert.read_bytes()) if mutual else (None, None)
        good = grpc.ssl_channel_credentials(root.read_bytes(), *pair)
        with grpc.secure_channel(server.address, good) as channel:
            assert infer(channel)(slow_request(1), timeout=SECONDS)
        identity = ["--tls-certificate", str(cert), "--tls-key", str(key)] if mutual else []
        assert main(["health", "--server", server.address, "--tls-root", str(root), *identity]) == 0
        assert main(["health", "--server", server.address]) == 1
        strangers = [grpc.insecure_channel(server.address)]
        if mutual:
            strangers.append(grpc.secure_channel(server.address, grpc.ssl_channel_credentials(root.read_bytes())))
        for channel in strangers:
            with channel:
                assert failure(channel, slow_request(1)).code() is grpc.StatusCode.UNAVAILABLE


def test_two_servers_do_not_share_a_port(server: ServerProcess, repository: Path, transport: str) -> None:
    second = ServerProcess(repository, "--transport", transport, "--grpc-port", server.address.rpartition(":")[2])
    assert second.wait() == 2
    assert any("cannot listen" in line for line in second.other_output)


def test_many_calls_at_once_on_many_connections(server: ServerProcess) -> None:
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    message = pb.ModelInferRequest(
        model_name="classifier",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=images.shape)],
        raw_input_contents=[images.tobytes()],
    ).SerializeToString()
    answers: list[bytes] = []

    def ask() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options) as mine:
            answers.extend(call.result() for call in [infer(mine).future(message, timeout=SECONDS) for _ in range(50)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert len(answers) == 400
    assert {pb.ModelInferResponse.FromString(answer).raw_output_contents[0] for answer in answers} == {
        pb.ModelInferResponse.FromString(answers[0]).raw_output_contents[0]
    }
    expected = models.classify(images)
    got = np.frombuffer(pb.ModelInferResponse.FromString(answers[0]).raw_output_contents[0], np.float32)
    np.testing.assert_allclose(got, expected[0], rtol=1e-5)
