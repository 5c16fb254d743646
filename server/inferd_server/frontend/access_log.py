"""A line of JSON for each inference request: who was asked for what, where the time went, how it ended.

Never a payload. Lines are written where the requests end, by the thread that answered them and after it has.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence

from inferd_server.errors import ConfigurationError
from inferd_server.frontend.status import status_of
from inferd_server.observability.failures import CANCELLED, reason_of
from inferd_server.observability.statistics import Stages
from inferd_server.scheduling.work import Work

_LOG = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 20
"""More than the lines of a batch: they reach the file in one write, so that workers' lines do not mix."""


class AccessLog:
    """Appends to the file `path`, or to stdout for `-`. From any thread.

    Raises ConfigurationError where the file cannot be opened. One that cannot be written later ends the log, not the
    server.
    """

    def __init__(self, path: str) -> None:
        try:
            target = os.dup(sys.stdout.fileno()) if path == "-" else path
            self._file = open(target, "ab", buffering=_BUFFER_BYTES)  # noqa: SIM115 - open as long as the server
        except OSError as error:
            raise ConfigurationError(f"--access-log {path} cannot be written: {error}") from error
        self._path = path
        self._lock = threading.Lock()
        self._broken = False

    def observe(self, name: str, version: int) -> _VersionLog:
        """The observer of a version's batcher."""
        return _VersionLog(self, name, str(version))

    def refused(self, request_id: str, name: str, version: str, error: Exception, ns: int) -> None:
        """A request that no batcher has taken: `version` as it was asked for."""
        self.write([_failure(request_id, name, version, None, error, ns)])

    def write(self, lines: Iterable[dict[str, object]]) -> None:
        """Appends lines."""
        data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
        with self._lock:
            if self._broken:
                return
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self._broken = True
                _LOG.error("--access-log %s cannot be written and ends here: %s", self._path, error)


class _VersionLog:
    """The requests of one version."""

    def __init__(self, log: AccessLog, name: str, version: str) -> None:
        self._log = log
        self._name = name
        self._version = version

    def answered(self, requests: Sequence[tuple[Work, Stages]]) -> None:
        self._log.write(
            {
                **_head(work.reply.request_id, self._name, self._version, work.rows),
                "code": "OK",
                "total_us": sum(stages) // 1000,
                "queue_us": stages.queue_ns // 1000,
                "compute_input_us": stages.input_ns // 1000,
                "compute_infer_us": stages.infer_ns // 1000,
                "compute_output_us": stages.output_ns // 1000,
            }
            for work, stages in requests
        )

    def failed(self, work: Work, error: Exception | None, ns: int) -> None:
        self._log.write([_failure(work.reply.request_id, self._name, self._version, work.rows, error, ns)])


def _failure(
    request_id: str, name: str, version: str, rows: int | None, error: Exception | None, ns: int
) -> dict[str, object]:
    code = "CANCELLED" if error is None else status_of(error).code.name
    reason = CANCELLED if error is None else reason_of(error)
    return {**_head(request_id, name, version, rows), "code": code, "reason": reason, "total_us": ns // 1000}


def _head(request_id: str, name: str, version: str, rows: int | None) -> dict[str, object]:
    now = time.time()
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return {
        "time": f"{seconds}.{int(now % 1 * 1000):03d}Z",
        "id": request_id,
        "model": name,
        "version": version,
        "rows": rows,
    }
