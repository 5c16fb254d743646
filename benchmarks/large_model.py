"""What a model of more than 2 GB costs a server in memory: `python -m benchmarks.large_model`.

The model is a chain of MatMuls whose weights lie in a file beside it. Its server's memory is read from
/proc/<pid>/smaps_rollup once the model is loaded, warm, and has answered.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from inferd_client import Client, InferdError
from inferd_protocol.artefact import MODEL_FILE, WEIGHTS_FILE
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.process import Failed, Started
from benchmarks.servers import free_port

NAME = "large"
LAYERS = 5
WIDTH = 10_496
"""5 * 10496 * 10496 * 4 bytes are 2.2e9, beyond protobuf's 2**31 - 1."""

NEEDS_DISK = 6 * 1024**3
NEEDS_MEMORY = 8 * 1024**3
"""Bytes that are to be free for two copies of the model, and for a server that keeps a packed one."""

_OPSET = 17
_IR_VERSION = 8
_START_SECONDS = 180.0
_ROWS = (1, 16)
_CALLS = 5
_FIGURES = ("Rss", "Pss", "Private_Dirty", "Pss_Anon", "Pss_File")


def write(folder: Path, width: int = WIDTH, layers: int = LAYERS) -> int:
    """Writes the model into `folder`, x [batch, width] -> y [batch, width], and returns its weights' bytes.

    One layer's weights are in memory at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nodes, tensors = [], []
    size = width * width * 4
    with (folder / WEIGHTS_FILE).open("wb") as stream:
        for layer in range(layers):
            # Multiples of the page: `size` is none for every width.
            offset = -(-stream.tell() // 4096) * 4096
            stream.seek(offset)
            _weights(width, layer).tofile(stream)
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            ends = ["x", *(f"h{number}" for number in range(1, layers)), "y"]
            nodes.append(helper.make_node("MatMul", [ends[layer], f"w{layer}"], [ends[layer + 1]]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy")
    graph = helper.make_graph(nodes, NAME, [x], [y], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())
    return layers * size


def expected(x: NDArray[np.float32], layers: int = LAYERS) -> NDArray[np.float32]:
    """What the model answers to `x`, by numpy; one layer's weights are in memory at a time."""
    for layer in range(layers):
        x = x @ _weights(x.shape[-1], layer)
    return x


def free_memory() -> int:
    """Bytes that may be had without pushing anybody out (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def memory(pids: Sequence[int]) -> dict[str, int]:
    """The figures of /proc/<pid>/smaps_rollup, in bytes, summed over processes."""
    found = dict.fromkeys(_FIGURES, 0)
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key = line.split(":")[0]
            if key in found:
                found[key] += int(line.split()[1]) * 1024
    return found


def _weights(width: int, layer: int) -> NDArray[np.float32]:
    """Uniform and small, so that a chain of them neither grows nor vanishes: another block of rows for each layer."""
    block = np.random.default_rng(layer).random((64, width), np.float32) - np.float32(0.5)
    scaled = block * np.float32((12 / width) ** 0.5)
    rows = np.arange(width)
    # Each row a block's, turned: cheap to make, and no two rows are alike.
    return np.stack([np.roll(scaled[row % 64], row) for row in rows])


def _measure(repository: Path, flags: Sequence[str], logs: Path) -> list[float]:
    port = free_port()
    command = [sys.executable, "-m", "inferd_protocol", "serve", "--model-repository", str(repository)]
    began = time.monotonic()
    with Started([*command, "--grpc-port", str(port), "--metrics-port", "0", *flags], logs / "server.log") as server:
        with Client(f"127.0.0.1:{port}") as client:
            while not _ready(client):
                server.check()
                if time.monotonic() - began > _START_SECONDS:
                    raise Failed(f"not ready in {_START_SECONDS} s: {server.tail()}")
                time.sleep(0.1)
            took = time.monotonic() - began
            calls = [_call_seconds(client, rows) for rows in _ROWS]
        found = memory(server.members())
        return [took, *(found[name] / 1e9 for name in _FIGURES), server.peak_bytes() / 1e9, *calls]


def _call_seconds(client: Client, rows: int) -> float:
    """The median of a few calls of `rows` rows."""
    x = np.random.default_rng(rows).random((rows, WIDTH), np.float32)
    seconds = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        client.infer(NAME, {"x": x})
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _ready(client: Client) -> bool:
    try:
        return client.model_ready(NAME, timeout=5.0)
    except InferdError:
        return False


def main() -> None:
    """Prints one line of figures for each way to serve the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the model is written and removed (default: a temporary one)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="inferd-large-", dir=arguments.folder))
    try:
        if shutil.disk_usage(folder).free < NEEDS_DISK or free_memory() < NEEDS_MEMORY:
            raise SystemExit("6 GB of disk and 8 GB of memory are needed")
        size = write(folder / "repository" / NAME / "1")
        print(f"weights {size / 1e9:.2f} GB, {os.cpu_count()} CPUs")
        # What is not on the disk yet would count as the server's own dirty pages.
        os.sync()
        columns = ["prepacking", "flags", "ready, s", *(f"{name}, GB" for name in (*_FIGURES, "peak RSS"))]
        print(f"| {' | '.join([*columns, *(f'call of {rows}, s' for rows in _ROWS)])} |")
        config = folder / "repository" / NAME / "config.pbtxt"
        for packed in (True, False):
            config.write_text(
                "" if packed else 'parameters { key: "session.disable_prepacking" value { string_value: "1" } }\n'
            )
            for flags in ([], ["--instances", "2"], ["--workers", "2"]):
                figures = " | ".join(f"{figure:.2f}" for figure in _measure(folder / "repository", flags, folder))
                how = f"{'on' if packed else 'off'} | {' '.join(flags) or '(none)'}"
                print(f"| {how} | {figures} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
