"""What a device reaches in process, without a server. Run as a program of its own.

`python -m benchmarks.gpu_limit <model> --device cuda --rows 1 64 --seconds 1` prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from inferd_protocol.tensors import Tensor
from inferd_server.config import Device
from inferd_server.errors import ServerError
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from inferd_server.runtime.options import GpuOptions, RuntimeOptions

from benchmarks import model

WAYS = {"plain": GpuOptions(), "bound": GpuOptions(), "graphs": GpuOptions(cuda_graphs=True)}
"""How a batch reaches the device: as ONNX Runtime copies arrays, on memory taken beforehand, and with CUDA graphs."""

_WARM_RUNS = 5


@dataclass(frozen=True, slots=True)
class DeviceLimit:
    """Runs of one size: the best of the ways, one run at a time."""

    rows: int
    rows_per_second: float
    run_us: float
    """The median."""
    way: str


def ways(device: Device) -> list[str]:
    """Those that a device has."""
    return {Device.CUDA: ["plain", "bound", "graphs"], Device.TENSORRT: ["plain", "bound"]}.get(device, ["plain"])


def measure(path: Path, device: Device, rows: Sequence[int], seconds: float) -> list[DeviceLimit]:
    """Runs each size in each way for `seconds`, and keeps the best. Raises ServerError where the device fails."""
    found: dict[int, DeviceLimit] = {}
    batches = {count: model.rows("FP32", count) for count in rows}
    for way in ways(device):
        backend = OnnxRuntimeBackend(device, 1, RuntimeOptions(gpu=WAYS[way]))
        loaded = backend.load(path)
        try:
            if way != "plain":
                loaded.prepare([[batches[min(rows)]], [batches[max(rows)]]])
            for count, batch in batches.items():
                median_ns, done, spent_ns = _time(loaded.run, [batch], seconds)
                rate = count * done / spent_ns * 1e9
                if count not in found or rate > found[count].rows_per_second:
                    found[count] = DeviceLimit(count, rate, median_ns / 1e3, way)
        finally:
            loaded.close()
    return [found[count] for count in rows]


def measure_apart(path: Path, device: Device, rows: Sequence[int], seconds: float) -> list[DeviceLimit]:
    """`measure` in a process of its own, which takes its memory on the device with it when it ends."""
    arguments = ["--device", device, "--rows", *map(str, rows), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "benchmarks.gpu_limit", str(path), *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [DeviceLimit(**line) for line in json.loads(answer.stdout)]


def _time(
    run: Callable[[Sequence[Tensor]], list[Tensor]], inputs: Sequence[Tensor], seconds: float
) -> tuple[float, int, int]:
    """The median of a run and what all took, ns, with their number."""
    for _ in range(_WARM_RUNS):
        run(inputs)
    times: list[int] = []
    begin = now = time.perf_counter_ns()
    while now - begin < seconds * 1e9:
        run(inputs)
        after = time.perf_counter_ns()
        times.append(after - now)
        now = after
    return statistics.median(times), len(times), now - begin


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", type=Device, default=Device.CUDA)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    try:
        found = measure(arguments.model, arguments.device, arguments.rows, arguments.seconds)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps([asdict(limit) for limit in found]))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
