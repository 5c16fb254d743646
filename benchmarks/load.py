"""Closed-loop load by h2load: so many requests in flight, each followed by the next.

h2load runs a little longer than is measured and logs every request. Rate, latency and the server's CPU time are all
taken from one window in the middle, in which connections are open, caches are warm and nothing is ending yet.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.payload import Call
from benchmarks.process import Failed

CONNECTIONS = 8
"""At most so many connections share what is in flight: 32 are 8 connections of 4 streams. One connection would put all
of it on one of a server's I/O threads; a connection a request is not how gRPC clients work."""

WARM_UP_SECONDS = 0.5
_TAIL_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0

_COUNTS = re.compile(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored")
_DATA = re.compile(r"\((\d+)\) data")


@dataclass(frozen=True, slots=True)
class Load:
    """One window. Latencies are those of the requests that ended in it; CPU is the server's, whole process tree."""

    requests: int
    requests_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    cpu_us_per_request: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What h2load says of its whole run."""

    started: int
    done: int
    bad: int
    data_bytes: int


def require_h2load() -> None:
    """Raises Failed where the program is missing."""
    if shutil.which("h2load") is None:
        raise Failed("h2load is not installed: it makes the load (Debian: apt-get install nghttp2-client)")


def closed_loop(
    call: Call, in_flight: int, seconds: float, cpu_seconds: Callable[[], float], warm_up: float = WARM_UP_SECONDS
) -> Load:
    """Keeps `in_flight` requests in flight and measures for `seconds`. Raises Failed where any of them failed."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.tsv"
        with _running(call, in_flight, warm_up + seconds + _TAIL_SECONDS, ["--log-file", str(log)]) as process:
            time.sleep(warm_up)
            begin, cpu_begin = time.time(), cpu_seconds()
            time.sleep(seconds)
            end, cpu_end = time.time(), cpu_seconds()
            output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
        check(parse(output), call.answer_bytes, output)
        return window(read_log(log), begin, end, cpu_end - cpu_begin)


def sustained(call: Call, in_flight: int, seconds: float, each_second: Callable[[], None]) -> float:
    """The same for a long time and without a log. Returns requests/s over all of it."""
    with _running(call, in_flight, seconds, []) as process:
        ends = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(min(1.0, max(0.0, ends - time.monotonic())))
            each_second()
        output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
    summary = parse(output)
    check(summary, call.answer_bytes, output)
    return summary.done / seconds


def arguments(call: Call, in_flight: int, seconds: float) -> list[str]:
    """h2load's command line. HTTP/1.1 has no streams, so there each request in flight has its own connection."""
    connections = in_flight if call.http1 else min(CONNECTIONS, in_flight)
    streams = 1 if call.http1 else in_flight // connections
    command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", "-D", f"{round(seconds * 1000)}ms"]
    command += ["-d", str(call.body), *(["--h1"] if call.http1 else [])]
    for header in call.headers:
        command += ["-H", header]
    return [*command, f"http://{call.address}{call.path}"]


def parse(output: str) -> Summary:
    """h2load's own counts. Raises Failed where there are none."""
    counts, data = _COUNTS.search(output), _DATA.search(output)
    if counts is None or data is None:
        raise Failed(f"h2load did not finish: {' '.join(output[-300:].split())}")
    _, started, done, succeeded, failed, errored = map(int, counts.groups())
    return Summary(started, done, failed + errored + (done - succeeded), int(data[1]))


def check(summary: Summary, answer_bytes: int, output: str = "") -> None:
    """Raises Failed where requests failed, or brought back other than `answer_bytes` each, as gRPC errors do."""
    if summary.done == 0:
        raise Failed(f"no request was answered: {' '.join(output[-300:].split())}")
    if summary.bad:
        raise Failed(f"{summary.bad} of {summary.started} requests failed")
    least, most = summary.done * answer_bytes, summary.started * answer_bytes
    # Answers of one peer vary by a few bytes.
    if not least * 0.99 <= summary.data_bytes <= most * 1.01:
        each = summary.data_bytes / summary.done
        raise Failed(f"{summary.done} answers brought {each:.1f} bytes each, a success brings {answer_bytes}")


def read_log(path: Path) -> NDArray[np.int64]:
    """h2load's log: one row a request of start (us since the epoch), HTTP status and latency (us)."""
    return np.array(path.read_bytes().split(), np.int64).reshape(-1, 3)


def window(log: NDArray[np.int64], begin: float, end: float, cpu_seconds: float) -> Load:
    """What happened from `begin` to `end`, in seconds since the epoch. Raises Failed where no request ended then."""
    ends = log[:, 0] + log[:, 2]
    inside = log[(ends >= begin * 1e6) & (ends < end * 1e6)]
    if len(inside) == 0:
        raise Failed(f"no request ended in {end - begin:.1f} s")
    p50, p99, p999 = np.percentile(inside[:, 2], (50, 99, 99.9))
    count = len(inside)
    return Load(count, count / (end - begin), float(p50), float(p99), float(p999), cpu_seconds / count * 1e6)


@contextlib.contextmanager
def _running(call: Call, in_flight: int, seconds: float, more: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = arguments(call, in_flight, seconds)
    command[1:1] = more
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    except subprocess.TimeoutExpired as error:
        raise Failed(
            f"h2load did not end {_PATIENCE_SECONDS:g} s after its time: the server stopped answering"
        ) from error
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
