"""What the native front leaves to the server: limits, and the way to everything that it does not answer itself."""

from __future__ import annotations

import contextlib
import importlib.util
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.methods import METHODS, SERVICE
from inferd_server.config import ServerConfig, Transport
from inferd_server.errors import ConfigurationError
from inferd_server.frontend import transport as transports
from support import models
from support.metrics import wait_until_taken
from support.server import ServerProcess, serve

SECONDS = 60.0
INFER = METHODS["ModelInfer"].path
LIMIT = 4096


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    models.write(folder, "identity", models.identity(models.ELEMENT_TYPES["FP32"]))
    models.write(folder, "embedding", models.embedding(width=500))
    models.write(folder, "slow", models.slow())
    models.write(folder, "slower", models.slow(multiplications=2000))
    return folder


@pytest.fixture(scope="module")
def narrow(small: Path, transport: str) -> Iterator[ServerProcess]:
    """A server with limits that a test can reach, on each transport: they hold on both."""
    limits = ("--grpc-max-message-size", str(LIMIT), "--grpc-max-concurrent-streams", "2")
    with serve(small, "--transport", transport, *limits) as running:
        yield running


def connect(server: ServerProcess) -> grpc.Channel:
    """A connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(server.address, options=options)


def request(model: str, array: np.ndarray, name: str = "x", datatype: str = "FP32") -> bytes:
    return pb.ModelInferRequest(
        model_name=model,
        inputs=[pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=array.shape)],
        raw_input_contents=[array.tobytes()],
    ).SerializeToString()


def failure(channel: grpc.Channel, message: bytes, timeout: float = SECONDS) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFER)(message, timeout=timeout)
    return caught.value


def test_a_request_over_the_limit_is_refused_and_the_connection_serves_on(narrow: ServerProcess) -> None:
    with connect(narrow) as channel:
        error = failure(channel, request("identity", np.zeros((1, LIMIT), np.float32)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(LIMIT) in error.details()
        good = request("identity", np.ones((1, 3), np.float32))
        assert channel.unary_unary(INFER)(good, timeout=SECONDS)


def test_an_answer_over_the_limit_is_refused(narrow: ServerProcess) -> None:
    with connect(narrow) as channel:
        error = failure(channel, request("embedding", np.zeros((1, 3), np.int64), "ids", "INT64"))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(LIMIT) in error.details()


def test_one_connection_cannot_have_more_calls_than_allowed(small: Path, transport: str) -> None:
    ones = request("identity", np.ones((1, 3), np.float32))
    long = request("slow", np.ones((12000, 256), np.float32))
    two = ("--grpc-max-concurrent-streams", "2")
    with serve(small, "--transport", transport, *two) as server, connect(server) as full, connect(server) as other:
        # Until the server's settings have come, a client knows no limit.
        assert full.unary_unary(INFER)(ones, timeout=SECONDS)
        running = [full.unary_unary(INFER).future(long, timeout=SECONDS) for _ in range(2)]
        assert failure(full, ones, timeout=0.2).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert other.unary_unary(INFER)(ones, timeout=SECONDS)
        assert all(call.result() for call in running)
        assert full.unary_unary(INFER)(ones, timeout=SECONDS)


def test_connections_beyond_the_open_files_wait_and_the_server_lives(small: Path, transport: str) -> None:
    ones = request("identity", np.ones((1, 3), np.float32))
    with serve(small, "--transport", transport) as server:
        files = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (files + 20, hard))
        host, port = server.address.split(":")
        with contextlib.ExitStack() as crowd:
            for _ in range(40):
                crowd.enter_context(socket.create_connection((host, int(port)), timeout=SECONDS))
        with connect(server) as channel:
            assert channel.unary_unary(INFER)(ones, timeout=SECONDS, wait_for_ready=True)


def test_compressed_requests_are_understood(narrow: ServerProcess) -> None:
    array = np.ones((10, 3), np.float32)
    with connect(narrow) as channel:
        answer = channel.unary_unary(INFER)(
            request("identity", array), timeout=SECONDS, compression=grpc.Compression.Gzip
        )
    assert pb.ModelInferResponse.FromString(answer).raw_output_contents[0] == array.tobytes()


def test_every_other_method_reaches_the_complete_server(narrow: ServerProcess) -> None:
    with connect(narrow) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        for path, name in ((f"/{SERVICE}/Nothing", "unknown"), (METHODS["CudaSharedMemoryRegister"].path, "not built")):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", timeout=SECONDS)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, name


def test_a_stop_finishes_what_was_taken(small: Path) -> None:
    long = request("slower", np.ones((200, 256), np.float32))
    with serve(small, "--transport", "native") as server, connect(server) as channel:
        running = channel.unary_unary(INFER).future(long, timeout=SECONDS)
        wait_until_taken(server, "slower", 1)
        assert server.stop() == 0
        assert running.result()


def test_a_stop_that_takes_too_long_ends_the_calls_that_run(small: Path) -> None:
    server = ServerProcess(small, "--transport", "native", "--exit-timeout-secs", "0.1")
    try:
        server.wait_for("ready")
        with connect(server) as channel:
            calls = [
                channel.unary_unary(INFER).future(request("slow", np.ones((12000, 256), np.float32)), timeout=SECONDS)
                for _ in range(4)
            ]
            assert channel.unary_unary(INFER)(request("identity", np.ones((1, 3), np.float32)), timeout=SECONDS)
            assert server.stop() == 0
            codes = {error.code() for call in calls if (error := call.exception(SECONDS)) is not None}
        assert codes == {grpc.StatusCode.UNAVAILABLE}
    finally:
        server.kill()


def test_auto_takes_native_where_it_is_installed_and_tls_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: tmp_path / name for name in ("grpc_server_cert", "grpc_server_key")}
    for file in files.values():
        file.touch()
    plain = ServerConfig(model_repository=tmp_path)
    assert transports._native(plain)
    assert not transports._native(ServerConfig(model_repository=tmp_path, grpc_use_ssl=True, **files))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not transports._native(plain)
    with pytest.raises(ConfigurationError, match=r"pip install 'inferd\[native\]'"):
        transports._native(ServerConfig(model_repository=tmp_path, transport=Transport.NATIVE))
    with pytest.raises(ConfigurationError, match="--transport native knows no TLS"):
        ServerConfig(model_repository=tmp_path, transport=Transport.NATIVE, grpc_use_ssl=True, **files)
