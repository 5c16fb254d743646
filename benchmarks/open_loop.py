"""Open-loop load: requests leave on a schedule, whether or not earlier ones have been answered.

Latency counts from the moment a request was due, not from when it could be sent, so a server that stalls is charged for
every request that waits meanwhile (no coordinated omission). h2load's `--rps` is no such load: its timers tick in whole
milliseconds and it counts from sending. This is a program of its own, and says what it costs itself: how late its own
sends were, and its CPU time per request.

`python -m benchmarks.open_loop <settings as JSON>` prints JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http2 import Connection, Http1, Http2, ProtocolError
from benchmarks.payload import Call
from benchmarks.process import Failed

_PR_SET_TIMERSLACK = 29
_GRACE_SECONDS = 10.0
_LEAD_SECONDS = 0.1
_WARM_UP_SHARE = 0.15
_CONNECTIONS = {False: 8, True: 128}
"""By protocol: 8 of HTTP/2 as in the closed loop; of HTTP/1.1, which has no streams, as many as the largest one."""


@dataclass(frozen=True, slots=True)
class OpenLoad:
    """One rate. Latencies are in us from the due time. `late_*` is how late requests were handed to the socket, and
    `own_cpu_us` what each cost this generator. `kept` is answered in time over due: below 1 the rate was too high.
    """

    rate: float
    requests: int
    kept: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    late_p50_us: float
    late_p99_us: float
    own_cpu_us: float
    cpu_us_per_request: float = 0.0


def measure(call: Call, rate: float, seconds: float, cpu_seconds: Callable[[], float]) -> OpenLoad:
    """Sends `rate` requests a second for `seconds`, from a process of its own. Raises Failed where any failed."""
    settings = {
        "address": call.address,
        "path": call.path,
        "headers": list(call.headers),
        "body": str(call.body),
        "http1": call.http1,
        "answer_bytes": call.answer_bytes,
        "rate": rate,
        "seconds": seconds,
    }
    before = cpu_seconds()
    command = [sys.executable, "-m", "benchmarks.open_loop", json.dumps(settings)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    spent = cpu_seconds() - before
    if answer.returncode != 0:
        raise Failed(f"open loop at {rate:g}/s: {(answer.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    found = OpenLoad(**json.loads(answer.stdout))
    return replace(found, cpu_us_per_request=spent / (rate * seconds) * 1e6)


def run(connections: Sequence[Connection], rate: float, seconds: float, answer_bytes: int) -> OpenLoad:
    """The schedule, on connections that are open. Raises ProtocolError where a request fails."""
    total = max(1, round(rate * seconds))
    latency, late = np.full(total, np.nan), np.full(total, np.nan)
    by_socket = {connection.socket: connection for connection in connections}
    sockets = list(by_socket)
    clock = time.perf_counter
    cpu = time.process_time()
    begin = clock() + _LEAD_SECONDS
    give_up = begin + seconds + _GRACE_SECONDS
    sent = ended = turn = 0
    gc.disable()
    while ended < total:
        now = clock()
        if now > give_up:
            break
        due = min(total, int((now - begin) * rate) + 1) if now >= begin else 0
        for _ in sockets:
            if sent >= due:
                break
            # What is due at the same time goes out in one piece; the connections take turns at that.
            connection = connections[turn]
            turn = (turn + 1) % len(connections)
            while sent < due and connection.ready():
                connection.send(sent)
                late[sent] = now - begin - sent / rate
                sent += 1
            _flush(connection)
        wait = begin + sent / rate - clock() if sent < total and sent >= due else 0.05
        writable = [sock for sock in sockets if by_socket[sock].outgoing]
        can_read, can_write, _ = select.select(sockets, writable, [], max(0.0, min(wait, 0.05)))
        for sock in can_read:
            connection = by_socket[sock]
            answers = connection.receive(sock.recv(1 << 18))
            now = clock()
            for answer in answers:
                if abs(answer.size - answer_bytes) > 0.01 * answer_bytes:
                    why = "" if answer.size else " (a gRPC error, such as a refusal where the rate is too high)"
                    raise ProtocolError(f"an answer had {answer.size} bytes, a success has {answer_bytes}{why}")
                latency[answer.tag] = now - begin - answer.tag / rate
            ended += len(answers)
        for sock in can_write:
            _flush(by_socket[sock])
    cpu = time.process_time() - cpu
    # What was never answered is charged with the whole time that it was waited for.
    due_times = np.arange(total) / rate
    unanswered = np.isnan(latency)
    latency[unanswered] = give_up - begin - due_times[unanswered]
    in_time = float(np.mean(due_times + latency <= seconds + 0.1))
    steady = slice(int(total * _WARM_UP_SHARE), None)
    p50, p99, p999, most = np.percentile(latency[steady], (50, 99, 99.9, 100)) * 1e6
    late_p50, late_p99 = np.nanpercentile(late[steady], (50, 99)) * 1e6
    figures = (in_time, p50, p99, p999, most, late_p50, late_p99, cpu / total * 1e6)
    return OpenLoad(rate, total, *(float(figure) for figure in figures))


def _flush(connection: Connection) -> None:
    if connection.outgoing:
        try:
            del connection.outgoing[: connection.socket.send(connection.outgoing)]
        except BlockingIOError:
            return


def _connect(settings: dict[str, Any]) -> list[Connection]:
    host, _, port = settings["address"].rpartition(":")
    body = Path(settings["body"]).read_bytes()
    kind: type[Http1] | type[Http2] = Http1 if settings["http1"] else Http2
    connections: list[Connection] = []
    for _ in range(_CONNECTIONS[settings["http1"]]):
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connections.append(kind(sock, settings["address"], settings["path"], settings["headers"], body))
    return connections


def _main() -> None:
    settings = json.loads(sys.argv[1])
    # Sleeps that end when they should, instead of up to 50 us later.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        found = run(_connect(settings), settings["rate"], settings["seconds"], settings["answer_bytes"])
    except (ProtocolError, OSError) as error:
        sys.exit(str(error))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    _main()
