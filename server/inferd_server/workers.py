"""`--workers N`: processes that share one port, for hosts with more CPUs than one Python process can feed.

The kernel spreads connections over the workers (SO_REUSEPORT); each is a whole server with models of its own. Told
apart from outside they must not be: the server is ready when every worker is, stops as one, and one that dies is
replaced by one that listens only once its models are loaded, while the others serve on.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from inferd_server.config import ServerConfig
from inferd_server.errors import ConfigurationError
from inferd_server.observability import log
from inferd_server.signals import SignalCounter

_LOG = logging.getLogger(__name__)

# The parent has neither threads nor gRPC nor a runtime, so that its memory can be handed down by fork.
_FORK = multiprocessing.get_context("fork")

_FORCED_STATUS = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker tells when its models are loaded, or that it cannot start as configured."""

    ready: bool = False
    summary: str = ""
    fields: dict[str, Any] | None = None
    refused: str = ""
    """The message of the ConfigurationError."""


@dataclass(frozen=True, slots=True)
class Link:
    """A worker's end of the pipe to its parent."""

    connection: Connection
    late: bool
    """Whether it replaces one that died, and so must not take connections before it can answer."""
    number: int
    """0, 1, ...; one that replaces another has its number."""
    folder: Path
    """Where the workers find each other."""

    def report(self, report: Report) -> None:
        """Tells the parent that the models are loaded; it answers once every worker is ready."""
        self.connection.send(report)

    def serves(self) -> None:
        """Tells the parent that health checks of this worker say so."""
        self.connection.send(None)


Serve = Callable[[ServerConfig, Link], int]
"""What a worker does; returns its exit status."""


def run(config: ServerConfig, serve: Serve) -> int:
    """Runs the workers until SIGTERM or SIGINT. Returns the exit status.

    Raises ConfigurationError where they cannot start as configured.
    """
    with contextlib.ExitStack() as held:
        port = held.enter_context(_reserve(config.grpc_address, config.grpc_port))
        config = replace(config, grpc_port=port.getsockname()[1])
        if config.metrics_port is not None:
            address = config.metrics_address or config.grpc_address
            port = held.enter_context(
                _reserve(address, config.metrics_port, "; --metrics-port names another, 0 any, off none")
            )
            config = replace(config, metrics_port=port.getsockname()[1])
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="inferd-")))
        return _Supervisor(config, serve, folder).run()


class _Worker:
    def __init__(
        self,
        number: int,
        config: ServerConfig,
        serve: Serve,
        folder: Path,
        others: Sequence[Connection],
        *,
        late: bool,
    ) -> None:
        self.number = number
        self.report: Report | None = None
        self.serves = False
        self.connection, theirs = _FORK.Pipe()
        self.process = _FORK.Process(
            target=_work,
            args=(serve, config, Link(theirs, late, number, folder), (*others, self.connection)),
            name=f"inferd-worker-{number}",
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def agree(self) -> None:
        """Tells it that every worker is ready. One that has died meanwhile is noticed by its end."""
        with contextlib.suppress(OSError):
            self.connection.send(True)


class _Supervisor:
    def __init__(self, config: ServerConfig, serve: Serve, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._serve = serve
        self._signals = SignalCounter()
        self._stopping = False
        self._serving = False
        self._statuses: list[int] = []
        wake_up, self._wake_up = socket.socketpair()
        for end in (wake_up, self._wake_up):
            end.setblocking(False)
        signal.set_wakeup_fd(wake_up.fileno())
        self._wake_up_sender = wake_up
        self._workers: list[_Worker] = []
        for stop in _STOP_SIGNALS:
            signal.signal(stop, self._on_signal)
        for number in range(config.workers):
            self._start(number, late=False)

    def run(self) -> int:
        """Until every worker has ended."""
        try:
            while self._workers:
                self._wait()
        finally:
            for worker in self._workers:
                worker.process.kill()
        return max(self._statuses, default=0)

    def _wait(self) -> None:
        by_end: dict[Any, _Worker] = {}
        for worker in self._workers:
            by_end[worker.process.sentinel] = worker
            if not worker.connection.closed:
                by_end[worker.connection] = worker
        for end in wait([*by_end, self._wake_up]):
            if end is self._wake_up:
                self._wake_up.recv(64)
            elif isinstance(end, Connection):
                # Closed already where the worker's end was seen first.
                if not end.closed:
                    self._receive(by_end[end])
            else:
                self._ended(by_end[end])

    def _start(self, number: int, *, late: bool) -> None:
        # A signal in between would meet a worker with its parent's handlers, or a parent that does not know it yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        others = [worker.connection for worker in self._workers]
        self._workers.append(_Worker(number, self._config, self._serve, self._folder, others, late=late))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)

    def _on_signal(self, number: int, _: object) -> None:
        if self._signals.count(number, time.monotonic()) > 1:
            _LOG.warning("stopping at once: requests that run are lost")
            for worker in self._workers:
                worker.process.kill()
            os._exit(_FORCED_STATUS)
        if not self._stopping:
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for worker in self._workers:
            worker.process.terminate()

    def _receive(self, worker: _Worker) -> None:
        try:
            message: Report | None = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.connection.close()
            return
        if message is None:
            worker.serves = True
            self._serves(worker)
        elif message.refused:
            raise ConfigurationError(message.refused)
        else:
            worker.report = message
            self._reported(worker)

    def _reported(self, worker: _Worker) -> None:
        reports = [each.report for each in self._workers if each.report]
        if self._serving:
            worker.agree()
        elif len(reports) == len(self._workers):
            if all(report.ready for report in reports):
                for each in self._workers:
                    each.agree()
            else:
                self._announce("not_ready", reports[0])

    def _serves(self, worker: _Worker) -> None:
        if self._serving:
            log.event(
                _LOG,
                "worker_replaced",
                f"worker {worker.number} serves in the place of the one that died",
                worker=worker.number,
            )
        elif worker.report and all(each.serves for each in self._workers):
            self._serving = True
            self._announce("ready", worker.report)

    def _announce(self, event: str, report: Report) -> None:
        workers = self._config.workers
        log.event(_LOG, event, f"{report.summary} with {workers} workers", workers=workers, **(report.fields or {}))

    def _ended(self, worker: _Worker) -> None:
        worker.process.join()
        while not worker.connection.closed and worker.connection.poll():
            self._receive(worker)
        self._workers.remove(worker)
        status = worker.process.exitcode or 0
        if self._stopping:
            # Told to stop before it could listen to signals, it ends as any process does.
            self._statuses.append(0 if status == -signal.SIGTERM else abs(status))
        elif self._serving and worker.serves:
            _LOG.error("worker %d died (status %d): another one takes its place", worker.number, status)
            self._start(worker.number, late=True)
        else:
            _LOG.error("worker %d ended (status %d) before it was ready: stopping", worker.number, status)
            self._statuses.append(abs(status) or _FORCED_STATUS)
            self._stop()


def _work(serve: Serve, config: ServerConfig, link: Link, inherited: Sequence[Connection]) -> None:
    """A worker's process."""
    # The parent's ends of the pipes: with copies of them here, the end of the parent would go unnoticed.
    for end in inherited:
        end.close()
    signal.set_wakeup_fd(-1)
    # Ended by SIGTERM as any process, until it knows how to drain.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # An interrupt from the terminal reaches every process; the parent passes it on as SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    try:
        status = serve(config, link)
    except ConfigurationError as error:
        link.report(Report(refused=str(error)))
        status = 2
    sys.exit(status)


def _reserve(host: str, port: int, advice: str = "") -> socket.socket:
    """A socket that holds a port of the workers' without listening on it.

    Raises ConfigurationError where the port is taken, by other servers' workers too.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Alone first: with SO_REUSEPORT the port of another server of this user's would be shared.
        with socket.socket(family, kind, protocol) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(where)
            where = alone.getsockname()
        shared = socket.socket(family, kind, protocol)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(where)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: is the port taken, the address one of this machine's?{advice} ({error})"
        ) from error
    return shared
