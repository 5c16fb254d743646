"""What a table of loads does not show: instances, starting, many models, idle connections, memory over time.

Each compares two figures taken one after the other in the same round. Figures go into `Results.extras` by these names.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from benchmarks import load, model, servers
from benchmarks.payload import Payloads, Shape
from benchmarks.plan import MANY, ONE, Plan
from benchmarks.process import Failed, Started
from benchmarks.results import Results
from benchmarks.servers import Running, Server

ONE_INSTANCE, TWO_INSTANCES = "64-row requests/s, 1 instance", "64-row requests/s, 2 instances"
START = "s from process start to SERVING"
PEAK, PEAK_IDLE = "requests/s without idle connections", "requests/s beside idle connections"
PEAK_ONE, PEAK_COPIES = "requests/s with one model loaded", "requests/s with many models loaded"
RESIDENT, RESIDENT_LOADED = "resident bytes before load", "resident bytes after load"
SOAK_RATE, SOAK_SECONDS, SOAK_GROWTH = "requests/s of the soak", "s of the soak", "bytes of growth in the soak"

_IN_FLIGHT = 32
_MANY_IN_FLIGHT = 8
_SOAK_IN_FLIGHT = 128
_SERVING_SECONDS = 30.0
_IDLE_SECONDS = 60.0
_CHECK_PATH = "/grpc.health.v1.Health/Check"


class Scenarios:
    """The scenarios of one server program: the first of `servers.ours`, which is what users get."""

    def __init__(self, plan: Plan, results: Results, payloads: Payloads, folder: Path) -> None:
        self._plan = plan
        self._results = results
        self._payloads = payloads
        self._logs = folder / "logs"
        self._both = folder / "repository"
        self._one = folder / "repository-one"
        self._many = folder / "repository-many"
        model.write_copies(self._both, self._one, "FP32", 1)
        model.write_copies(self._both, self._many, "FP32", plan.copies)

    def run_round(self) -> None:
        """All but the soak, once."""
        self._start_time()
        for count, name in ((1, ONE_INSTANCE), (2, TWO_INSTANCES)):
            with self._started(self._one, "--instances", str(count)) as running:
                self._results.add_extra(name, self._rate(running, MANY, _MANY_IN_FLIGHT))
        with self._started(self._one) as running:
            self._results.add_extra(RESIDENT, running.process.resident_bytes())
            self._results.add_extra(PEAK_ONE, self._rate(running, ONE, _IN_FLIGHT))
            self._results.add_extra(PEAK, self._rate(running, ONE, _IN_FLIGHT))
            with _idle_connections(running.address, self._plan.idle, self._logs):
                self._results.add_extra(PEAK_IDLE, self._rate(running, ONE, _IN_FLIGHT))
        with self._started(self._many) as running:
            self._results.add_extra(PEAK_COPIES, self._rate(running, ONE, _IN_FLIGHT))

    def soak(self) -> None:
        """Full load for long: what the server holds before, after, and whether it grows meanwhile."""
        seconds = self._plan.soak_seconds
        sizes: list[int] = []
        with self._started(self._one) as running:
            call = running.call(ONE)
            rate = load.sustained(
                call, _SOAK_IN_FLIGHT, seconds, lambda: sizes.append(running.process.resident_bytes())
            )
            self._results.add_extra(RESIDENT_LOADED, running.process.resident_bytes())
        self._results.add_extra(SOAK_RATE, rate)
        self._results.add_extra(SOAK_SECONDS, seconds)
        self._results.add_extra(SOAK_GROWTH, growth(sizes))

    @contextlib.contextmanager
    def _started(self, repository: Path, *flags: str) -> Iterator[Running]:
        server = self._server(repository, *flags)
        with servers.started(server, self._payloads, self._logs, ONE) as running:
            # The first model answers before the last one is loaded, and loading takes the CPU.
            port = int(running.address.rpartition(":")[2])
            _await_serving(running.process, port, time.monotonic() + _SERVING_SECONDS)
            yield running

    def _server(self, repository: Path, *flags: str) -> Server:
        return servers.ours(repository, more=flags)[0][0]

    def _rate(self, running: Running, shape: Shape, in_flight: int) -> float:
        call = running.call(shape)
        return load.closed_loop(call, in_flight, self._plan.seconds, running.process.cpu_seconds).requests_per_s

    def _start_time(self) -> None:
        port = servers.free_port()
        server = self._server(self._one)
        begin = time.monotonic()
        with Started(server.command(port), self._logs / "start.log") as process:
            _await_serving(process, port, begin + _SERVING_SECONDS)
            self._results.add_extra(START, time.monotonic() - begin)


def growth(sizes: list[int]) -> float:
    """Bytes by which the last tenth's smallest size exceeds the largest of the second tenth: 0 where it does not.

    The first tenth is when buffers and pools come to their size. Raises Failed where there are too few sizes.
    """
    tenth = len(sizes) // 10
    if tenth == 0:
        raise Failed(f"a soak needs at least 10 s, there were {len(sizes)} samples")
    return max(0.0, float(min(sizes[-tenth:]) - max(sizes[tenth : 2 * tenth])))


def _await_serving(process: Started, port: int, ends: float) -> None:
    """Asks grpc.health.v1 until it says SERVING. A new channel a try: a channel waits longer after each refusal."""
    request = health_pb2.HealthCheckRequest().SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    while time.monotonic() < ends:
        process.check()
        with contextlib.suppress(OSError, grpc.RpcError):
            servers.connect(port)
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_CHECK_PATH)
                answer = call(request, timeout=5)
            if health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING:
                return
        time.sleep(0.002)
    raise Failed(f"was not SERVING within {_SERVING_SECONDS:g} s: {process.tail()}")


@contextlib.contextmanager
def _idle_connections(address: str, count: int, logs: Path) -> Iterator[None]:
    log = logs / "idle.log"
    with Started([sys.executable, "-m", "benchmarks.idle", address, str(count)], log) as process:
        ends = time.monotonic() + _IDLE_SECONDS
        while "ready" not in log.read_text():
            process.check()
            if time.monotonic() > ends:
                raise Failed(f"{count} idle connections did not open within {_IDLE_SECONDS:g} s")
            time.sleep(0.05)
        yield
        process.check()
