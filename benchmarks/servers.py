"""Every server that is measured: how it is started, what it is told, when it is ready."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from benchmarks import echo, venvs
from benchmarks.payload import Call, Payloads, Shape
from benchmarks.process import Failed, Started

ROOT = Path(__file__).parent.parent
NATIVE, GRPCIO = "inferd native", "inferd grpcio"
ECHO_AIO, ECHO_FRONT = "echo grpc.aio", "echo pygrpc-native"
_START_SECONDS = 90.0
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Server:
    """A server and one way to set it: `setting` says which, in words. `command` makes the command line for a port."""

    name: str
    setting: str
    command: Callable[[int], Sequence[str]]
    raw_path: str | None = None
    """Takes raw HTTP bodies at this path, instead of the Open Inference Protocol."""
    peer: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that has answered."""

    server: Server
    process: Started
    address: str
    payloads: Payloads

    def call(self, shape: Shape) -> Call:
        """The call to load it with, just checked. Raises Failed where the answer is wrong."""
        return _call(self.server, self.address, self.payloads, shape)


@contextlib.contextmanager
def started(server: Server, payloads: Payloads, logs: Path, ready: Shape) -> Iterator[Running]:
    """Starts a server, waits for its first right answer, ends it. Raises Failed where it does not come to that."""
    port = free_port()
    log = logs / f"{server.name.replace(' ', '-').lower()}.log"
    with Started(server.command(port), log, server.environment) as process:
        address = f"127.0.0.1:{port}"
        await_answer(process, port, lambda: _call(server, address, payloads, ready))
        yield Running(server, process, address, payloads)


def ours(repository: Path, *, more: Sequence[str] = ()) -> tuple[list[Server], dict[str, str]]:
    """inferd on each transport it has, and why on others not."""
    flags = serve_flags()
    absent: dict[str, str] = {}
    transports: list[tuple[str, list[str]]] = []
    if "--transport" not in flags:
        absent[NATIVE] = "this inferd has no --transport"
        transports = [(GRPCIO, [])]
    else:
        if importlib.util.find_spec("pygrpc_native") is None:
            absent[NATIVE] = "pygrpc-native is not installed"
        else:
            transports.append((NATIVE, ["--transport", "native"]))
        transports.append((GRPCIO, ["--transport", "grpcio"]))
    common = ["--model-repository", str(repository), "--log-level", "warning", "--intra-op-threads", "1", *more]
    if "--instances" not in more:
        common += ["--instances", "1"]
    if "--workers" in flags:
        common += ["--workers", "1"]
    if "--metrics-port" in flags:
        # Served as users have it, on a port that nobody else has.
        common += ["--metrics-port", "0"]

    def command(extra: list[str]) -> Callable[[int], Sequence[str]]:
        program = [sys.executable, "-m", "inferd_protocol", "serve", *common, *extra]
        return lambda port: [*program, "--grpc-port", str(port)]

    setting = "1 instance, 1 intra-op thread"
    return [Server(name, setting, command(extra)) for name, extra in transports], absent


def echoes() -> tuple[list[Server], dict[str, str]]:
    """Bare transports, and why one is absent."""

    def command(kind: str) -> Callable[[int], Sequence[str]]:
        return lambda port: [sys.executable, "-m", "benchmarks.echo", kind, "--port", str(port)]

    servers = [Server(ECHO_AIO, "answers only", command("aio"))]
    if importlib.util.find_spec("pygrpc_native") is None:
        return servers, {ECHO_FRONT: "pygrpc-native is not installed"}
    return [*servers, Server(ECHO_FRONT, "answers only", command("front"))], {}


def peers(repository: Path, folder: Path) -> tuple[dict[str, list[Server]], dict[str, str]]:
    """Each peer in its settings, the default first; and, by name, why a peer cannot be had."""
    found: dict[str, list[Server]] = {}
    absent: dict[str, str] = {}
    makers = {"KServe SDK": _kserve, "MLServer": _mlserver, "LitServe": _litserve, "Ray Serve": _ray}
    for name, maker in makers.items():
        try:
            python = venvs.interpreter(maker.__name__.removeprefix("_"), folder / "venvs")
        except Failed as failure:
            absent[name] = str(failure)
            continue
        environment = {"BENCH_REPOSITORY": str(repository.resolve())}
        found[name] = maker(name, str(python), folder, environment)
    return found, absent


def _kserve(name: str, python: str, _folder: Path, environment: Mapping[str, str]) -> list[Server]:
    script = str(venvs.PEERS / "kserve_server.py")

    def command(port: int) -> list[str]:
        return [python, script, "--port", str(port), "--http-port", str(free_port())]

    return [Server(name, "gRPC; the SDK has no batcher", command, peer=True, environment=environment)]


def _mlserver(name: str, python: str, folder: Path, environment: Mapping[str, str]) -> list[Server]:
    script = str(venvs.PEERS / "mlserver_server.py")

    def command(label: str, *flags: str) -> Callable[[int], list[str]]:
        def build(port: int) -> list[str]:
            ports = ["--port", str(port), "--http-port", str(free_port()), "--metrics-port", str(free_port())]
            return [python, script, *ports, "--folder", str((folder / "mlserver" / label).resolve()), *flags]

        return build

    batching = ("--max-batch-size", "64", "--max-batch-time")
    settings = [
        ("gRPC, 1 parallel worker, batching 64 / 1 ms", command("a", "--parallel-workers", "1", *batching, "0.001")),
        ("gRPC, parallel_workers=0, batching off", command("b", "--parallel-workers", "0")),
    ]
    return [Server(name, text, build, peer=True, environment=environment) for text, build in settings]


def _litserve(name: str, python: str, _folder: Path, environment: Mapping[str, str]) -> list[Server]:
    script = str(venvs.PEERS / "litserve_server.py")

    def command(*flags: str) -> Callable[[int], list[str]]:
        return lambda port: [python, script, "--port", str(port), *flags]

    batching = command("--max-batch-size", "64", "--batch-timeout", "0.001")
    settings = [("HTTP raw body, batching 64 / 1 ms", batching), ("HTTP raw body, batching off", command())]
    return [Server(name, text, build, "/predict", True, environment) for text, build in settings]


def _ray(name: str, python: str, _folder: Path, environment: Mapping[str, str]) -> list[Server]:
    script = str(venvs.PEERS / "ray_server.py")
    # Ray's proxy and replicas import the messages and the deployment by name.
    path = os.pathsep.join([str(venvs.PEERS), str(ROOT / "protos")])
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}

    def build(flags: Sequence[str], timeout: str, setting: str) -> Server:
        def command(port: int) -> list[str]:
            return [python, script, "--port", str(port), "--http-port", str(free_port()), *flags]

        variables = {**environment, **quiet, "BENCH_BATCH_TIMEOUT": timeout}
        return Server(name, setting, command, peer=True, environment=variables)

    return [
        build((), "0.01", "gRPC, batching 64 / 10 ms, max_ongoing_requests=5"),
        build(("--max-ongoing-requests", "256"), "0.001", "gRPC, batching 64 / 1 ms, max_ongoing_requests=256"),
    ]


@cache
def serve_flags() -> str:
    """The help of `inferd serve`: a flag that another version has is passed where it is named there."""
    command = [sys.executable, "-m", "inferd_protocol", "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def await_answer(process: Started, port: int, ask: Callable[[], _Answer]) -> _Answer:
    """Asks a server that was just started until there is an answer. Raises Failed where there is none in time."""
    ends = time.monotonic() + _START_SECONDS
    _await_port(process, port, ends)
    while True:
        process.check()
        try:
            return ask()
        except Failed as failure:
            # Listening comes before serving: the model may still be loading.
            if time.monotonic() > ends:
                raise Failed(
                    f"did not answer rightly within {_START_SECONDS:g} s: {failure}: {process.tail()}"
                ) from failure
            time.sleep(0.1)


def connect(port: int) -> None:
    """Opens a connection and closes it. Raises OSError where nothing listens."""
    socket.create_connection(("127.0.0.1", port), 1).close()


def _call(server: Server, address: str, payloads: Payloads, shape: Shape) -> Call:
    if server.name in (ECHO_AIO, ECHO_FRONT):
        return payloads.echo_call(address, shape, len(echo.ANSWER))
    if server.raw_path:
        return payloads.raw_call(address, server.raw_path, shape)
    return payloads.grpc_call(address, shape)


def _await_port(process: Started, port: int, ends: float) -> None:
    while time.monotonic() < ends:
        process.check()
        with contextlib.suppress(OSError):
            connect(port)
            return
        time.sleep(0.01)
    raise Failed(f"did not listen within {_START_SECONDS:g} s: {process.tail()}")
