"""What the client library costs: CPU time and page faults a call, and the scorer beside the server's own peak.

    python -m benchmarks.clients --repository demo-output/repository

Starts a server, then the clients, each in a process of its own (client_workers.py), and has them call in turn, round
after round: what else the machine does falls on all of them alike. A ratio is the median of the rounds' ratios. Prints
Markdown tables; `--json FILE` keeps every figure of every round. Needs h2load (Debian's nghttp2-client).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from inferd_client import Client
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.datatypes import BY_NAME
from inferd_protocol.methods import METHODS

ROWS = 64
"""Those of a large request, and of the scorer's."""
PEAK_IN_FLIGHT = (2, 4, 8)
PEAK_SECONDS = 3
INFERD = (sys.executable, "-m", "inferd_protocol")
WORKERS = Path(__file__).with_name("client_workers.py")


@dataclass(frozen=True)
class Scenario:
    """Clients that do the same. `calls` are those of a round."""

    name: str
    rows: int
    in_flight: int
    calls: int
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A bound on a scenario's figure, as a ratio to another client's or by itself."""

    scenario: str
    what: str
    figure: str
    of: str
    to: str | None
    bound: float


SCENARIOS = (
    Scenario("1 row", 1, 1, 300, ("inferd", "tritonclient", "stub", "stub-bytes")),
    Scenario("1 row, 32 in flight", 1, 32, 960, ("inferd-aio", "tritonclient-aio", "stub-aio", "stub-bytes-aio")),
    Scenario("64 rows", ROWS, 1, 100, ("inferd", "tritonclient", "stub", "stub-bytes")),
)
TARGETS = (
    Target("1 row", "CPU of tritonclient's", "cpu_us", "inferd", "tritonclient", 0.85),
    Target("1 row", "CPU of a bare stub's that sends ready bytes", "cpu_us", "inferd", "stub-bytes", 1.05),
    Target("1 row, 32 in flight", "CPU of tritonclient.aio's", "cpu_us", "inferd-aio", "tritonclient-aio", 0.8),
    Target("64 rows", "CPU of tritonclient's", "cpu_us", "inferd", "tritonclient", 0.8),
    # Less than one in ten calls: a page that the interpreter itself asks for now and then is not the call's.
    Target("64 rows", "page faults a call", "faults", "inferd", None, 0.1),
)
SCORER_BOUND = 0.9


@dataclass(frozen=True)
class Server:
    """The server that is measured against, and the one input and output of its model."""

    address: str
    model: str
    input: str
    output: str
    datatype: str
    shape: tuple[int, ...]


class Worker:
    """A client in a process of its own."""

    def __init__(self, kind: str, server: Server, scenario: Scenario) -> None:
        shape = ",".join(map(str, (scenario.rows, *server.shape)))
        self._process = subprocess.Popen(
            [
                *(sys.executable, WORKERS, kind, "--target", server.address, "--model", server.model),
                *("--input", server.input, "--output", server.output, "--datatype", server.datatype),
                *("--shape", shape, "--in-flight", str(scenario.in_flight)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._line() != "ready\n":
            raise SystemExit(f"{kind} did not start")

    def measure(self, calls: int) -> dict[str, float]:
        """CPU and wall time in microseconds, and page faults, a call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        took: dict[str, float] = json.loads(self._line())
        return took

    def stop(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


@contextlib.contextmanager
def serve(repository: Path, model: str | None) -> Iterator[Server]:
    """`inferd serve` on a free port, as the targets have it: one instance, one intra-op thread."""
    command = [*INFERD, "serve", "--model-repository", str(repository), "--grpc-port", "0", "--intra-op-threads", "1"]
    command += ["--metrics-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if ready := re.search(r"serving: ([^/]+)/\S+ on \S+ at ([^\s;]+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        name = model or ready[1]
        with Client(ready[2]) as client:
            metadata = client.model_metadata(name)
        (tensor,), (output,) = metadata.inputs, metadata.outputs
        if output.datatype.name != "FP32":
            raise SystemExit(f"the bare stubs read FP32, and '{name}' answers {output.datatype.name}")
        yield Server(ready[2], name, tensor.name, output.name, tensor.datatype.name, tensor.shape[1:])
    finally:
        process.terminate()
        process.wait()


def measure(server: Server, scenario: Scenario, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Each client's figures, round by round."""
    with contextlib.ExitStack() as stack:
        workers = {}
        for kind in scenario.clients:
            workers[kind] = Worker(kind, server, scenario)
            stack.callback(workers[kind].stop)
        for worker in workers.values():
            worker.measure(scenario.calls)
        figures: dict[str, list[dict[str, float]]] = {kind: [] for kind in workers}
        for number in range(rounds):
            # To and fro: whoever always follows the same client would find the caches as that one leaves them.
            for kind in list(workers)[:: -1 if number % 2 else 1]:
                figures[kind].append(workers[kind].measure(scenario.calls))
        return figures


def peak(server: Server, request: Path, in_flight: int) -> float:
    """Rows a second of 64-row requests that h2load gets answered."""
    load = ["-D", str(PEAK_SECONDS), "-c", "1", "-m", str(in_flight), "-w", "24", "-W", "24", "-d", str(request)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"http://{server.address}{METHODS['ModelInfer'].path}"
    report = subprocess.run(["h2load", *load, *headers, url], capture_output=True, text=True, check=True).stdout
    found = re.search(r"finished in [\d.]+s, ([\d.]+) req/s", report)
    if found is None or " 0 failed" not in report:
        raise SystemExit(f"h2load: {report}")
    return float(found[1]) * ROWS


def write_request(server: Server, rows: np.ndarray[Any, Any], path: Path) -> None:
    """A gRPC message for h2load to send."""
    message = pb.ModelInferRequest(model_name=server.model)
    message.inputs.add(name=server.input, datatype=server.datatype, shape=rows.shape)
    message.raw_input_contents.append(rows.tobytes())
    data = message.SerializeToString()
    path.write_bytes(struct.pack(">BI", 0, len(data)) + data)


def write_rows(server: Server, count: int, path: Path) -> np.ndarray[Any, Any]:
    """`count` random rows as NPY, a thousand at a time; returns the first ones."""
    dtype = BY_NAME[server.datatype].numpy
    file = np.lib.format.open_memmap(path, "w+", dtype, (count, *server.shape))
    generator = np.random.default_rng(0)
    for start in range(0, count, 1000):
        file[start : start + 1000] = generator.integers(0, 256, file[start : start + 1000].shape, np.uint8)
    file.flush()
    return np.array(file[:ROWS])


def score(server: Server, rows: Path, count: int, output: Path) -> dict[str, float]:
    """`inferd score` from start to end: rows a second and CPU time a row, starting the interpreter included."""
    command = [*INFERD, "score", str(rows), "--output", str(output), "--model", server.model]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--server", server.address], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    if process.returncode:
        raise SystemExit("inferd score failed")
    seconds = time.perf_counter() - began
    return {"rows_per_s": count / seconds, "cpu_us_per_row": 1e6 * (usage.ru_utime + usage.ru_stime) / count}


def measure_scorer(server: Server, count: int, rounds: int) -> list[dict[str, float]]:
    """Round by round, the scorer between two peaks of the server, by which its share is taken."""
    with tempfile.TemporaryDirectory() as folder:
        rows, request = Path(folder, "rows.npy"), Path(folder, "request")
        write_request(server, write_rows(server, count, rows), request)
        in_flight = max(PEAK_IN_FLIGHT, key=lambda number: peak(server, request, number))
        found = []
        before = peak(server, request, in_flight)
        for _ in range(rounds):
            figures = score(server, rows, count, Path(folder, "scores.npy"))
            after = peak(server, request, in_flight)
            figures["peak_rows_per_s"] = (before + after) / 2
            figures["share"] = figures["rows_per_s"] / figures["peak_rows_per_s"]
            found.append(figures)
            before = after
        return found


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median and, in brackets, the quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def verdicts(measured: dict[str, dict[str, list[dict[str, float]]]]) -> Iterator[tuple[str, str, str, str, str]]:
    """The table's rows: measure, target, figure, ratio, met."""
    for target in TARGETS:
        if target.scenario not in measured:
            continue
        rounds = measured[target.scenario]
        own = [figures[target.figure] for figures in rounds[target.of]]
        if target.to is None:
            value, ratio = statistics.median(own), "-"
        else:
            others = [figures[target.figure] for figures in rounds[target.to]]
            ratios = [mine / other for mine, other in zip(own, others, strict=True)]
            value, ratio = statistics.median(ratios), spread(ratios, 2)
        figure = spread(own, 2 if target.figure == "faults" else 0) + ("" if target.figure == "faults" else " us")
        met = "yes" if value <= target.bound else "no"
        yield f"{target.scenario}: {target.what}", f"<= {target.bound}", figure, ratio, met


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("demo-output/repository"), help="the models to serve")
    parser.add_argument("--model", help="the one to call (default: the first that is served)")
    parser.add_argument("--rounds", type=int, default=31, help="of calls (default: %(default)s)")
    parser.add_argument("--score-rounds", type=int, default=5, help="of the scorer, 0 for none (default: %(default)s)")
    parser.add_argument("--score-rows", type=int, default=1_000_000, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every figure goes")
    arguments = parser.parse_args()
    if arguments.score_rounds and shutil.which("h2load") is None:
        raise SystemExit("h2load is missing: install it (Debian: nghttp2-client), or give --score-rounds 0")
    measured = {}
    scored = []
    with serve(arguments.repository, arguments.model) as server:
        for scenario in SCENARIOS:
            measured[scenario.name] = measure(server, scenario, arguments.rounds)
        if arguments.score_rounds:
            scored = measure_scorer(server, arguments.score_rows, arguments.score_rounds)

    rows = list(verdicts(measured))
    if scored:
        shares = [figures["share"] for figures in scored]
        rate = f"{spread([figures['rows_per_s'] for figures in scored])} rows/s"
        met = "yes" if statistics.median(shares) >= SCORER_BOUND else "no"
        rows.append(("inferd score: share of the 64-row peak", f">= {SCORER_BOUND}", rate, spread(shares, 2), met))
    print(table(("measure", "target", "figure", "ratio", "met"), rows))
    costs = [
        (name, kind, *(spread([figures[key] for figures in rounds], digits) for key, digits in _COLUMNS))
        for name, kinds in measured.items()
        for kind, rounds in kinds.items()
    ]
    print(table(("scenario", "client", "CPU us a call", "page faults a call", "us from call to call"), costs))
    if scored:
        costs = [tuple(spread([figures[key] for figures in scored], digits) for key, digits in _SCORER_COLUMNS)]
        print(table(("inferd score: CPU us a row", "rows/s", "the server's peak, rows/s"), costs))
    if arguments.json is not None:
        record = {"scenarios": [asdict(scenario) for scenario in SCENARIOS], "calls": measured, "scorer": scored}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


_COLUMNS = (("cpu_us", 0), ("faults", 2), ("wall_us", 0))
_SCORER_COLUMNS = (("cpu_us_per_row", 1), ("rows_per_s", 0), ("peak_rows_per_s", 0))


if __name__ == "__main__":
    main()
