"""A real server process for tests, on a free port, told apart from its neighbours by nothing but that port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

START_SECONDS = 60.0
STOP_SECONDS = 60.0


class ServerProcess:
    """`inferd serve` with its log lines as they come. The addresses are host:port once it has said so."""

    def __init__(self, repository: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "inferd_protocol", "serve", "--model-repository", str(repository)]
        self.process = subprocess.Popen(
            [*command, "--grpc-port", "0", "--metrics-port", "0", "--log-format", "json", *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        )
        self.lines: list[dict[str, Any]] = []
        self.other_output: list[str] = []
        self._events: Queue[dict[str, Any] | None] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = ""
        self.metrics_address = ""

    def wait_for(self, *events: str) -> dict[str, Any]:
        """The first log line, of those not yet waited for, with one of the events."""
        while True:
            try:
                line = self._events.get(timeout=START_SECONDS)
            except Empty:
                raise AssertionError(f"no {events} in {START_SECONDS} s; it said {self.lines}") from None
            if line is None:
                raise AssertionError(f"the server ended before {events}; it said {self.lines} {self.other_output}")
            if line.get("event") in events:
                self.address = line.get("address", self.address)
                self.metrics_address = line.get("metrics_address", self.metrics_address)
                return line

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit status, once it has ended and everything it said is read."""
        status = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        return status

    def kill(self) -> None:
        """Ends it whatever it is doing, where it has not ended."""
        self.process.kill()
        self.wait()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for text in stream:
                try:
                    line = json.loads(text)
                except ValueError:
                    self.other_output.append(text)
                    continue
                self.lines.append(line)
                self._events.put(line)
        self._events.put(None)


@contextlib.contextmanager
def serve(repository: Path, *arguments: str) -> Iterator[ServerProcess]:
    """A server that is ready, or has said that it is not; stopped afterwards, with exit status 0."""
    server = ServerProcess(repository, *arguments)
    try:
        server.wait_for("ready", "not_ready")
        yield server
        assert server.stop() == 0, server.lines
    finally:
        server.kill()
