"""Processes that are started to be measured: their CPU time, their memory, and their certain end.

A server may be many processes, some of which detach themselves. All that descend from one start are found by an
environment variable that they inherit, by their parents and by their session, and remembered once seen.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_TOKEN = "INFERD_BENCH_PROCESS"
_TICKS = os.sysconf("SC_CLK_TCK")
_TERM_SECONDS = 8.0
_KILL_SECONDS = 5.0

Identity = tuple[int, str]
"""A process: its id and the time it started, since ids are reused."""


class Failed(Exception):
    """Something that was to be measured did not start, died, or answered wrongly."""


class Started:
    """One start of a program, in a session of its own, with its output in `log`. A context manager that ends it."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        self._token = uuid.uuid4().hex
        self._seen: set[Identity] = set()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {}), _TOKEN: self._token},
            )

    def __enter__(self) -> Started:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Raises Failed with the end of its log where the program has ended."""
        if self._process.poll() is not None:
            raise Failed(f"ended with status {self._process.returncode}: {self.tail()}")

    def tail(self, characters: int = 600) -> str:
        """The end of its output, on one line."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join(line.strip() for line in text[-characters:].splitlines() if line.strip())

    def members(self) -> list[int]:
        """The ids of every living process that came of this start."""
        table = _processes()
        token = f"{_TOKEN}={self._token}".encode()
        ids = {pid for pid, (start, _, _) in table.items() if (pid, start) in self._seen}
        ids |= {pid for pid in table if pid == self._process.pid or _has(pid, token)}
        while True:
            sessions = {table[pid][2] for pid in ids if pid in table}
            more = {pid for pid, (_, parent, session) in table.items() if parent in ids or session in sessions} - ids
            if not more:
                break
            ids |= more
        self._seen |= {(pid, table[pid][0]) for pid in ids if pid in table}
        return sorted(pid for pid in ids if pid in table)

    def cpu_seconds(self) -> float:
        """User and system time of all of it so far, in seconds."""
        return sum(_cpu_seconds(pid) for pid in self.members())

    def resident_bytes(self) -> int:
        """Memory held now (VmRSS, summed: pages that processes share count in each)."""
        return sum(_status_bytes(pid, "VmRSS") for pid in self.members())

    def peak_bytes(self) -> int:
        """The most memory that each process ever held (VmHWM), summed."""
        return sum(_status_bytes(pid, "VmHWM") for pid in self.members())

    def stop(self) -> None:
        """Asks with SIGTERM, then kills whatever is left. Safe to call again."""
        members = self.members()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_TERM_SECONDS)
        ends = time.monotonic() + _KILL_SECONDS
        while (members := self.members()) and time.monotonic() < ends:
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
            time.sleep(0.02)


def _processes() -> dict[int, tuple[str, int, int]]:
    """Every living process: its start time, parent and session."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and fields[0] not in "ZX":
            table[int(name)] = (fields[19], int(fields[1]), int(fields[3]))
    return table


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on, which follows the name in brackets; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _has(pid: int, token: bytes) -> bool:
    try:
        return token in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _status_bytes(pid: int, field: str) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
