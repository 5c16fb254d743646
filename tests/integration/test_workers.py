"""Several processes on one port, which nobody outside can tell from one."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inferd_client import Client
from inferd_protocol.methods import METHODS
from support import models
from support.server import ServerProcess, serve

SECONDS = 60.0
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
IMAGES = np.arange(64, dtype=np.uint8).reshape(4, 4, 4, 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    models.write(folder, "classifier", models.classifier())
    return folder


@pytest.fixture
def pair(small: Path, transport: str) -> Iterator[ServerProcess]:
    with serve(small, "--transport", transport, "--workers", "2") as running:
        yield running


def children(process: int) -> list[int]:
    """The processes that a process has started, as Linux lists them."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def health(address: str) -> int:
    """The answer of whichever worker a new connection reaches."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        status: int = check(health_pb2.HealthCheckRequest(), timeout=SECONDS, wait_for_ready=True).status
        return status


def test_every_connection_is_answered_and_all_stop_together(pair: ServerProcess) -> None:
    workers = children(pair.process.pid)
    (ready,) = [line for line in pair.lines if line.get("event") == "ready"]
    assert (ready["workers"], len(workers)) == (2, 2)
    for _ in range(16):
        assert health(pair.address) == SERVING
        with Client(pair.address) as client:
            result = client.infer("classifier", {"image": IMAGES})
            np.testing.assert_allclose(result["probabilities"], models.classify(IMAGES), rtol=1e-5)
    assert pair.stop() == 0
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_worker_that_dies_is_replaced_while_the_other_serves(pair: ServerProcess) -> None:
    first, second = children(pair.process.pid)
    os.kill(first, signal.SIGKILL)
    for _ in range(8):
        assert health(pair.address) == SERVING
    assert pair.wait_for("worker_replaced")["worker"] in (0, 1)
    now = children(pair.process.pid)
    assert second in now
    assert first not in now
    assert len(now) == 2
    for _ in range(8):
        with Client(pair.address) as client:
            assert client.infer("classifier", {"image": IMAGES})["probabilities"].shape == (4, 3)


def test_a_required_model_that_fails_keeps_every_worker_from_being_ready(tmp_path: Path) -> None:
    models.write(tmp_path, "classifier", models.classifier())
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with serve(tmp_path, "--workers", "2", "--required-model", "broken") as server:
        assert server.lines[-1]["event"] == "not_ready"
        for _ in range(8):
            assert health(server.address) == NOT_SERVING
            with grpc.insecure_channel(server.address) as channel:
                assert channel.unary_unary(METHODS["ServerLive"].path)(b"", timeout=SECONDS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--required-model", "nothing"], "--required-model nothing is not in the repository"),
        (["--grpc-address", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_what_no_worker_can_do_is_said_once(small: Path, arguments: list[str], text: str) -> None:
    server = ServerProcess(small, "--workers", "3", *arguments)
    assert server.wait() == 2
    assert sum(text in line for line in server.other_output) == 1, server.other_output
    assert not any("Traceback" in line for line in server.other_output)


def test_workers_do_not_join_the_port_of_another_server(pair: ServerProcess, small: Path) -> None:
    for workers in ("1", "2"):
        second = ServerProcess(small, "--workers", workers, "--grpc-port", pair.address.rpartition(":")[2])
        assert second.wait() == 2
        assert any("cannot listen" in line for line in second.other_output)


def test_workers_end_when_their_parent_is_killed(small: Path) -> None:
    server = ServerProcess(small, "--workers", "2")
    server.wait_for("ready")
    ends = [os.pidfd_open(worker) for worker in children(server.process.pid)]
    server.process.kill()
    for end in ends:
        assert _readable(end), "the process has ended"
        os.close(end)
    server.wait()


def _readable(descriptor: int) -> bool:
    ready, _, _ = select.select([descriptor], [], [], SECONDS)
    return bool(ready)
