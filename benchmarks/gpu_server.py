"""What a server makes of a device: rows/s by rows a call, one call against many, memory over loads and unloads."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from inferd_client import Client
from inferd_protocol.tensors import Tensor

from benchmarks import model
from benchmarks.process import Failed, Started
from benchmarks.servers import free_port

MODEL = model.MODELS["FP32"]
CALLERS = 4
"""Clients that each have a call in flight."""
_START_SECONDS = 600.0
"""Engines of TensorRT are built first."""
_MOST_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Served:
    """Calls of one size."""

    rows: int
    rows_per_second: float


@dataclass(frozen=True, slots=True)
class OneOrMany:
    """The same rows in one call, and in calls of one row, all of them in flight together."""

    rows: int
    one_call_ms: float
    many_calls_ms: float


@dataclass(frozen=True, slots=True)
class Held:
    """Memory after a load, a call and an unload, bytes. None for a GPU whose driver does not say."""

    turn: int
    resident_bytes: int
    gpu_bytes: int | None


def start(repository: Path, device: str, log: Path, *flags: str) -> tuple[Started, str]:
    """A server that answers, and its address. Raises Failed where it does not within ten minutes."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "inferd_protocol",
        "serve",
        "--model-repository",
        str(repository),
        "--device",
        device,
    ]
    command += ["--grpc-port", str(port), "--metrics-port", "off", *flags]
    started = Started(command, log)
    ends = time.monotonic() + _START_SECONDS
    try:
        with Client(address) as client:
            while not _ready(client):
                started.check()
                if time.monotonic() > ends:
                    raise Failed(f"not ready after {_START_SECONDS:g} s: {started.tail()}")
                time.sleep(0.1)
    except BaseException:
        started.stop()
        raise
    return started, address


def throughput(address: str, rows: Sequence[int], seconds: float) -> list[Served]:
    """Rows/s with `CALLERS` calls in flight, by rows a call. Raises Failed for an answer of another shape."""
    return [Served(count, _rate(address, count, seconds)) for count in rows]


def one_or_many(address: str, rows: Sequence[int], rounds: int) -> list[OneOrMany]:
    """The median of some rounds, which take turns."""
    found = []
    with Client(address) as client:
        for count in rows:
            batch = model.rows("FP32", count)
            one: list[float] = []
            many: list[float] = []
            for _ in range(rounds + 1):
                one.append(_one(client, batch))
                many.append(_many(client, batch))
            # The first of each is how connections and memory warm up.
            found.append(OneOrMany(count, float(np.median(one[1:])) * 1e3, float(np.median(many[1:])) * 1e3))
    return found


def memory(started: Started, address: str, turns: int) -> list[Held]:
    """Loads, calls and unloads a model over and over, under explicit control."""
    held = []
    batch = model.rows("FP32", 64)
    with Client(address) as client:
        for turn in range(turns):
            client.load_model(MODEL)
            client.infer(MODEL, {model.INPUT: batch})
            client.unload_model(MODEL)
            _await_unloaded(client)
            held.append(Held(turn + 1, started.resident_bytes(), gpu_bytes()))
    return held


def gpu_bytes() -> int | None:
    """Memory in use on the first GPU, as its driver counts it."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[0]) * 1024 * 1024
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        return None


def _rate(address: str, count: int, seconds: float) -> float:
    batch = model.rows("FP32", count)
    ends = 0.0

    def call(client: Client) -> int:
        done = 0
        while time.perf_counter() < ends:
            _check(client.infer(MODEL, {model.INPUT: batch})[model.OUTPUT], count)
            done += count
        return done

    clients = [Client(address) for _ in range(CALLERS)]
    try:
        for client in clients:
            client.infer(MODEL, {model.INPUT: batch})
        begin = time.perf_counter()
        ends = begin + seconds
        with ThreadPoolExecutor(CALLERS) as threads:
            done = sum(threads.map(call, clients))
        return done / (time.perf_counter() - begin)
    finally:
        for client in clients:
            client.close()


def _one(client: Client, batch: Tensor) -> float:
    begin = time.perf_counter()
    _check(client.infer(MODEL, {model.INPUT: batch})[model.OUTPUT], len(batch))
    return time.perf_counter() - begin


def _many(client: Client, batch: Tensor) -> float:
    rows = ({model.INPUT: batch[row : row + 1]} for row in range(len(batch)))
    begin = time.perf_counter()
    for answer in client.infer_many(MODEL, rows, concurrency=min(len(batch), _MOST_ROWS)):
        _check(answer[model.OUTPUT], 1)
    return time.perf_counter() - begin


def _check(answer: Tensor, rows: int) -> None:
    if answer.shape != (rows, model.CLASSES):
        raise Failed(f"expected an answer of shape {[rows, model.CLASSES]}, got {list(answer.shape)}")


def _ready(client: Client) -> bool:
    try:
        return client.server_ready(timeout=1.0)
    except Exception:  # noqa: BLE001 - it is not there yet; that it never will be is `check`'s to say
        return False


def _await_unloaded(client: Client) -> None:
    ends = time.monotonic() + 60.0
    while client.model_ready(MODEL):
        if time.monotonic() > ends:
            raise Failed(f"'{MODEL}' is still there a minute after it was unloaded")
        time.sleep(0.01)
    # Its memory is given back by the thread that retires it.
    time.sleep(0.2)
