"""The limit: ONNX Runtime in process, at the thread count that the servers get. Run as a program of its own.

`python -m benchmarks.limit <model> --rows 1 8 64 --seconds 1` prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

ROWS = (1, 8, 64)
"""The sizes of run that are tried; a server's batches may be of up to 64 rows."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Runs of one size: their rate, the median time of a run, and the CPU time that a row took in this process."""

    rows: int
    rows_per_s: float
    run_us: float
    cpu_us_per_row: float


def session(path: Path) -> ort.InferenceSession:
    """As the servers under test are told to make theirs: one thread, which does not spin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(path: Path, rows: int, seconds: float) -> Limit:
    """Runs the model over and over for `seconds`."""
    model = session(path)
    node = model.get_inputs()[0]
    dtype = np.float32 if node.type == "tensor(float)" else np.uint8
    shape = [rows, *node.shape[1:]]
    feeds = {node.name: np.random.default_rng(0).integers(0, 255, shape).astype(dtype)}
    names = [output.name for output in model.get_outputs()]
    for _ in range(10):
        model.run(names, feeds)
    times: list[int] = []
    cpu, begin = time.process_time_ns(), time.perf_counter_ns()
    now = begin
    while now - begin < seconds * 1e9:
        model.run(names, feeds)
        after = time.perf_counter_ns()
        times.append(after - now)
        now = after
    cpu = time.process_time_ns() - cpu
    done = rows * len(times)
    return Limit(rows, done / (now - begin) * 1e9, statistics.median(times) / 1e3, cpu / done / 1e3)


def measure_apart(path: Path, rows: Sequence[int], seconds: float) -> list[Limit]:
    """`measure` in a process of its own, so that nothing of this one's is in the way."""
    arguments = ["--rows", *map(str, rows), "--seconds", str(seconds)]
    command = [sys.executable, "-m", "benchmarks.limit", str(path), *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return [Limit(**line) for line in json.loads(answer.stdout)]


def compare(made: Path, trained: Path, seconds: float, rounds: int = 3) -> float:
    """Time per row of the model made here over that of a trained export of the same architecture, at 64 rows."""
    found = []
    for _ in range(rounds):
        ours, theirs = (measure_apart(path, (64,), seconds)[0].run_us for path in (made, trained))
        found.append(ours / theirs)
    return statistics.median(found)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=1.0)
    arguments = parser.parse_args()
    print(json.dumps([asdict(measure(arguments.model, rows, arguments.seconds)) for rows in arguments.rows]))


if __name__ == "__main__":
    _main()
