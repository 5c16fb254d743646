"""Measures inferd on an NVIDIA GPU. Makes its own models; writes JSON and a table into build/bench.

`python -m benchmarks.gpu` needs a GPU and says so, with status 2, where there is none.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from inferd_server.config import Device
from inferd_server.errors import ConfigurationError
from inferd_server.runtime import fingerprint
from inferd_server.runtime.devices import providers

from benchmarks import gpu_limit, gpu_server, model
from benchmarks.gpu_limit import DeviceLimit
from benchmarks.gpu_server import Held, OneOrMany, Served
from benchmarks.process import Failed

ROWS = tuple(1 << power for power in range(13))
"""1 to 4096."""
MANY_ROWS = (64, 1024)
_MIB = 1024 * 1024
_NO_DEVICE = 2
_FAILED = 1
_TURNS = 20
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class GpuResults:
    """One run of the program."""

    device: str
    name: str
    limits: list[DeviceLimit] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    calls: list[OneOrMany] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)


def run(device: Device, rows: Sequence[int], seconds: float, turns: int, folder: Path) -> GpuResults:
    """All of it. Raises Failed where a server does not start or answers wrongly, ServerError where the device fails."""
    name = fingerprint.cpu_model() if device is Device.CPU else fingerprint.gpu_model()
    results = GpuResults(device, name)
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as made:
        repository = Path(made)
        model.write_repository(repository)
        file = model.model_file(repository, "FP32")
        before = gpu_limit.measure_apart(file, device, rows, seconds)
        batch = ("--max-batch-size", str(max(rows)), "--instances", "2")
        started, address = gpu_server.start(repository, device, folder / "gpu-server.log", *batch)
        with started:
            results.served.extend(gpu_server.throughput(address, rows, seconds))
            results.calls.extend(gpu_server.one_or_many(address, [n for n in MANY_ROWS if n <= max(rows)], _ROUNDS))
        after = gpu_limit.measure_apart(file, device, rows, seconds)
        results.limits.extend(map(_better, before, after))
        explicit = ("--model-control-mode", "explicit", "--load-model", model.MODELS["UINT8"])
        started, address = gpu_server.start(repository, device, folder / "gpu-memory.log", *explicit)
        with started:
            results.held.extend(gpu_server.memory(started, address, turns))
    return results


def _better(one: DeviceLimit, other: DeviceLimit) -> DeviceLimit:
    """A limit is the most that was reached, and a busy moment must not make it less."""
    return max(one, other, key=lambda limit: limit.rows_per_second)


def markdown(results: GpuResults) -> str:
    """The report."""
    lines = [
        f"# inferd on {results.device}: {results.name}",
        "",
        f"The reference CNN, FP32. In process: the best of {', '.join(gpu_limit.ways(Device(results.device)))},",
        "one run at a time, before the server's turn and after it. Served: "
        f"{gpu_server.CALLERS} clients on the same host, a call in flight each.",
        "",
        "| rows | in process, rows/s | run, us | way | served, rows/s | of the limit |",
        "|---|---|---|---|---|---|",
    ]
    for limit, served in zip(results.limits, results.served, strict=True):
        share = served.rows_per_second / limit.rows_per_second
        lines.append(
            f"| {limit.rows} | {limit.rows_per_second:,.0f} | {limit.run_us:,.0f} | {limit.way} "
            f"| {served.rows_per_second:,.0f} | {share:.2f} |"
        )
    if any(b.rows_per_second > a.rows_per_second for a, b in zip(results.limits, results.served, strict=True)):
        lines += ["", "Shares above 1 say that the machine was busy when the limit was measured: measure again."]
    lines += ["", "| rows | in one call, ms | in calls of one row, ms |", "|---|---|---|"]
    lines += [f"| {each.rows} | {each.one_call_ms:.2f} | {each.many_calls_ms:.2f} |" for each in results.calls]
    lines += ["", *_memory(results.held), ""]
    return "\n".join(lines)


def _memory(held: Sequence[Held]) -> list[str]:
    """The growth is between the halves' medians: the first loads take what later ones use again."""
    half = len(held) // 2
    rows = [f"Memory over {len(held)} loads and unloads, MiB:", "", "| | first half | second half |", "|---|---|---|"]
    resident = [each.resident_bytes / _MIB for each in held]
    rows.append(f"| host | {statistics.median(resident[:half]):,.0f} | {statistics.median(resident[half:]):,.0f} |")
    gpu = [each.gpu_bytes / _MIB for each in held if each.gpu_bytes is not None]
    if len(gpu) == len(held):
        rows.append(f"| GPU | {statistics.median(gpu[:half]):,.0f} | {statistics.median(gpu[half:]):,.0f} |")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 1 where a measurement failed, 2 where the device cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--device", choices=["cuda", "tensorrt", "cpu"], default="cuda", help="cpu tries the program out"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each size and way")
    parser.add_argument("--most-rows", type=int, default=ROWS[-1], choices=ROWS[1:], metavar="ROWS", help="up to 4096")
    parser.add_argument("--turns", type=int, default=_TURNS, help="loads and unloads, 2 or more")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder for gpu.json and gpu.md")
    asked = parser.parse_args(arguments)
    if asked.turns < 2 or not 0 < asked.seconds < 3600:
        parser.error("--turns expects 2 or more, --seconds more than 0")
    device = Device(asked.device)
    try:
        providers(device)
    except ConfigurationError as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return _NO_DEVICE
    asked.output.mkdir(parents=True, exist_ok=True)
    rows = [count for count in ROWS if count <= asked.most_rows]
    try:
        results = run(device, rows, asked.seconds, asked.turns, asked.output)
    except Failed as error:
        print(f"nothing was written: {error}", file=sys.stderr)
        return _FAILED
    (asked.output / "gpu.json").write_text(json.dumps(asdict(results), indent=1))
    text = markdown(results)
    (asked.output / "gpu.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
