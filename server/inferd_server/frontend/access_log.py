"""A line of JSON for each inference request: who was asked for what, where the time went, how it ended.

Never a payload. A line is made by the thread that answered the request, after it has, and written by another.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as _quoted

from inferd_server.errors import ConfigurationError
from inferd_server.frontend.status import status_of
from inferd_server.observability.failures import CANCELLED, reason_of
from inferd_server.observability.statistics import Stamps
from inferd_server.scheduling.work import Work

_LOG = logging.getLogger(__name__)

_EVERY_SECONDS = 0.1
"""How long a line may wait to be written: a write for each batch would take the interpreter from those who serve."""
_MOST_WAITING = 1 << 16
"""Batches whose lines wait: some seconds of full load. Behind a disk that is slower, lines are lost, not the server."""


class AccessLog:
    """Appends to the file `path`, or to stdout for `-`. From any thread.

    Raises ConfigurationError where the file cannot be opened. One that cannot be written later ends the log, not the
    server.
    """

    def __init__(self, path: str) -> None:
        try:
            target = os.dup(sys.stdout.fileno()) if path == "-" else path
            # Unbuffered: what is written at once, whole lines, stays together beside other workers' lines.
            self._file = open(target, "ab", buffering=0)  # noqa: SIM115 - open as long as the server
        except OSError as error:
            raise ConfigurationError(f"--access-log {path} cannot be written: {error}") from error
        self._path = path
        self._waiting: deque[str] = deque()
        self._lost = 0
        self._broken = False
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_on, name="access-log", daemon=True)
        self._writer.start()

    def observe(self, name: str, version: int) -> _VersionLog:
        """The observer of a version's batcher."""
        return _VersionLog(self, name, str(version))

    def refused(self, request_id: str, name: str, version: str, error: Exception, ns: int) -> None:
        """A request that no batcher has taken: `version` as it was asked for."""
        self.write(_failure(request_id, _addressee(name, version), None, error, ns))

    def write(self, lines: str) -> None:
        """Appends lines, each with its end."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(lines)
        elif not self._broken:
            self._lost += 1

    def close(self) -> None:
        """Writes what there is, and ends."""
        self._closing.set()
        self._writer.join()

    def _write_on(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(_EVERY_SECONDS)
            rest = memoryview("".join([self._waiting.popleft() for _ in range(len(self._waiting))]).encode())
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._broken = True
                _LOG.error("--access-log %s cannot be written and ends here: %s", self._path, error)
                return
            if self._lost:
                _LOG.warning("--access-log %s is too slow: the lines of %d batches are lost", self._path, self._lost)
                self._lost = 0


class _VersionLog:
    """The requests of one version."""

    def __init__(self, log: AccessLog, name: str, version: str) -> None:
        self._log = log
        self._addressee = _addressee(name, version)

    def answered(self, works: Sequence[Work], stamps: Stamps) -> None:
        # By hand, and what they share once: with a JSON encoder's calls the lines cost a fifth of the throughput.
        picked, began, ended, done = stamps
        before, after = f'{{"time":"{_now()}","id":', f',{self._addressee},"rows":'
        stages = (
            f',"compute_input_us":{(began - picked) // 1000},"compute_infer_us":{(ended - began) // 1000},'
            f'"compute_output_us":{(done - ended) // 1000}}}\n'
        )
        self._log.write(
            "".join(
                [
                    f'{before}{_quoted(work.reply.request_id)}{after}{work.rows},"code":"OK",'
                    f'"total_us":{(done - work.arrived_ns) // 1000},"queue_us":{(picked - work.arrived_ns) // 1000}'
                    f"{stages}"
                    for work in works
                ]
            )
        )

    def failed(self, work: Work, error: Exception | None, ns: int) -> None:
        self._log.write(_failure(work.reply.request_id, self._addressee, work.rows, error, ns))


def _failure(request_id: str, addressee: str, rows: int | None, error: Exception | None, ns: int) -> str:
    code = "CANCELLED" if error is None else status_of(error).code.name
    reason = CANCELLED if error is None else reason_of(error)
    return (
        f'{{"time":"{_now()}","id":{_quoted(request_id)},{addressee},"rows":{"null" if rows is None else rows},'
        f'"code":"{code}","reason":"{reason}","total_us":{ns // 1000}}}\n'
    )


def _addressee(name: str, version: str) -> str:
    return f'"model":{_quoted(name)},"version":{_quoted(version)}'


def _now() -> str:
    """RFC 3339, to the millisecond."""
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"{seconds}.{int(now % 1 * 1000):03d}Z"
