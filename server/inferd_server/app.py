"""Builds the server and runs it: the order in which it starts and stops is written here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from inferd_server.background import run_in_background
from inferd_server.config import ServerConfig
from inferd_server.core.inference import InferenceCore
from inferd_server.errors import ConfigurationError
from inferd_server.frontend import figures
from inferd_server.frontend.access_log import AccessLog
from inferd_server.frontend.config_service import ConfigService
from inferd_server.frontend.figures import Source
from inferd_server.frontend.infer import InferEndpoint
from inferd_server.frontend.log_settings import LoggingExtension
from inferd_server.frontend.metrics_server import MetricsServer
from inferd_server.frontend.repository_service import RepositoryService
from inferd_server.frontend.sampling import Sampling
from inferd_server.frontend.services import Services
from inferd_server.frontend.shared_memory import CudaSharedMemory, SystemSharedMemory
from inferd_server.frontend.siblings import Siblings
from inferd_server.frontend.statistics_service import StatisticsService
from inferd_server.frontend.trace_settings import TraceExtension
from inferd_server.frontend.transport import Server, listen
from inferd_server.observability import log
from inferd_server.repository.lifecycle import State
from inferd_server.repository.manager import RepositoryManager
from inferd_server.runtime import options
from inferd_server.runtime.cuda_regions import CudaRegions
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from inferd_server.runtime.resources import available_cpus
from inferd_server.scheduling.observer import together
from inferd_server.shared_memory.regions import Regions
from inferd_server.shared_memory.system import most_regions
from inferd_server.signals import SignalCounter
from inferd_server.workers import Link, Report

if TYPE_CHECKING:
    from inferd_server.frontend.tracing import Traces

_LOG = logging.getLogger(__name__)

_FORCED_STATUS = 1
_TRACES_SECONDS = 2.0
"""What the last traces get to be sent in. Who watches nothing must not be waited for."""

_SWITCH_SECONDS = 0.0005
"""How long a thread may keep the GIL while another wants it. Python's own 5 ms is longer than most runs: a batch
that is done would wait for the thread that decodes the next one."""


def run(config: ServerConfig, link: Link | None = None) -> int:
    """Runs the server until it is told to stop by SIGTERM or SIGINT. Returns the exit status.

    With a `link` it is one of several workers. Raises ConfigurationError where it cannot start as asked.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    threads = config.intra_op_threads or max(1, available_cpus() // (config.instances * config.workers))
    access_log = AccessLog(config.access_log) if config.access_log else None
    traces = _traces(config)
    observe = together([part.observe for part in (access_log, traces) if part])
    backend = OnnxRuntimeBackend(config.device, threads, options.from_config(config))
    repository = RepositoryManager(config, backend, observe)
    asyncio.run(_serve(config, repository, backend.on_gpu, access_log, traces, link))
    return 0


async def _serve(
    config: ServerConfig,
    repository: RepositoryManager,
    on_gpu: bool,
    access_log: AccessLog | None,
    traces: Traces | None,
    link: Link | None,
) -> None:
    core = InferenceCore(repository)
    source = _source(config, repository, core, link)
    regions = Regions(most_regions(), config.shared_memory_refusal)
    endpoint = InferEndpoint(core, regions, access_log, traces)
    services = Services(
        repository,
        [
            ConfigService(repository),
            StatisticsService(repository, source),
            RepositoryService(repository),
            SystemSharedMemory(regions),
            CudaSharedMemory(regions, CudaRegions() if on_gpu else None),
            LoggingExtension(config),
            TraceExtension(config, repository, traces.sample if traces else None),
        ],
    )
    stop = _stop_signal((signal.SIGTERM, signal.SIGINT) if link is None else (signal.SIGTERM,))
    if link:
        services.hold_back()
    if link and link.late:
        loading = run_in_background(repository.start, "loading")
        await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
        if stop.done():
            _leave("stopped before it had loaded its models")
        server, metrics = _listen(config, endpoint, services, source)
        await _start(server, metrics)
    else:
        # Ports before models: the server is live at once, and a port that is taken is known before a long load.
        server, metrics = _listen(config, endpoint, services, source)
        await _start(server, metrics)
        loading = run_in_background(repository.start, "loading")
    await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.done():
        loading.result()
        # What is loaded stays: without this every full collection, in the middle of some requests, would look at it.
        gc.collect()
        gc.freeze()
        report = _report(config, server, metrics, repository)
        if link:
            await _agree(link, report, services, stop)
        else:
            log.event(_LOG, "ready" if report.ready else "not_ready", report.summary, **(report.fields or {}))
        if link and services.is_ready():
            link.serves()
        following = asyncio.create_task(_follow(config, server, services, repository))
        await stop
        following.cancel()
    await _shut_down(config, server, metrics, services, repository, access_log, traces, loading)


def _source(config: ServerConfig, repository: RepositoryManager, core: InferenceCore, link: Link | None) -> Source:
    """The figures of this process, or of all workers."""
    own = functools.partial(figures.collect, repository, core)
    if link is None:
        return lambda: {0: own()}
    return Siblings(link.folder, link.number, config.workers, own).figures


def _traces(config: ServerConfig) -> Traces | None:
    if config.trace_endpoint is None:
        return None
    try:
        # Imported when asked for: it is an extra, and costs the start of a server a quarter of a second.
        from inferd_server.frontend.tracing import Traces
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"--trace-endpoint needs an extra that is not installed ({error.name}): pip install 'inferd[tracing]'"
        ) from error
    return Traces(config.trace_endpoint, Sampling(on=True, rate=config.trace_rate))


def _listen(
    config: ServerConfig, endpoint: InferEndpoint, services: Services, source: Source
) -> tuple[Server, MetricsServer | None]:
    if config.metrics_port is None:
        return listen(config, endpoint, services), None
    address = config.metrics_address or config.grpc_address
    metrics = MetricsServer(address, config.metrics_port, source, config.workers)
    try:
        return listen(config, endpoint, services), metrics
    except ConfigurationError:
        metrics.free()
        raise


async def _start(server: Server, metrics: MetricsServer | None) -> None:
    await server.start()
    if metrics:
        metrics.start()


async def _follow(config: ServerConfig, server: Server, services: Services, repository: RepositoryManager) -> None:
    """Looks at the repository from time to time, under poll control, and keeps health checks told."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    changed.set()

    def tell() -> None:
        # A load that ends after the server has stopped has nobody to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(changed.set)

    repository.on_change(tell)
    polling = asyncio.create_task(_poll(config, repository)) if repository.polls else None
    try:
        while await changed.wait():
            changed.clear()
            server.set_serving(services.is_ready())
    finally:
        if polling:
            polling.cancel()


async def _poll(config: ServerConfig, repository: RepositoryManager) -> None:
    while True:
        await asyncio.sleep(config.repository_poll_secs)
        try:
            await run_in_background(repository.poll, "polling")
        except Exception:  # noqa: BLE001 - see below
            # Whatever it was, a disk's failure say, the next look may succeed.
            _LOG.exception("the repository could not be polled, what serves goes on")


async def _agree(link: Link, report: Report, services: Services, stop: asyncio.Future[None]) -> None:
    """Tells the parent of this worker's state, and waits until every worker is ready, or the server is to stop."""
    loop = asyncio.get_running_loop()
    agreed: asyncio.Future[None] = loop.create_future()

    def on_message() -> None:
        try:
            link.connection.recv()
        except EOFError:
            # The parent is no more, and with it whoever would say when to stop.
            loop.remove_reader(link.connection.fileno())
            if not stop.done():
                stop.set_result(None)
        else:
            services.agree()
            if not agreed.done():
                agreed.set_result(None)

    loop.add_reader(link.connection.fileno(), on_message)
    link.report(report)
    await asyncio.wait({agreed, stop}, return_when=asyncio.FIRST_COMPLETED)


def _report(
    config: ServerConfig, server: Server, metrics: MetricsServer | None, repository: RepositoryManager
) -> Report:
    entries = [
        (f"{name}/{version}", entry)
        for name, model in repository.models.items()
        for version, entry in model.versions.items()
    ]
    ready = [label for label, entry in entries if entry.state is State.READY]
    failed = [name for name, model in repository.models.items() if model.latest is None]
    providers = sorted({entry.servable.model.provider for _, entry in entries if entry.servable})
    state = "serving" if repository.ready() else "not ready"
    summary = (
        f"{state}: {', '.join(ready) or 'no model'} on {', '.join(providers) or 'nothing'} at {server.address}"
        + (" with TLS" if config.grpc_use_ssl else "")
        + (f"; unavailable: {', '.join(failed)}" if failed else "")
        + (f"; metrics at http://{metrics.address}/metrics" if metrics else "")
    )
    fields: dict[str, object] = {
        "address": server.address,
        "models": ready,
        "unavailable": failed,
        "providers": providers,
    }
    if metrics:
        fields["metrics_address"] = metrics.address
    return Report(repository.ready(), summary, fields)


async def _shut_down(
    config: ServerConfig,
    server: Server,
    metrics: MetricsServer | None,
    services: Services,
    repository: RepositoryManager,
    access_log: AccessLog | None,
    traces: Traces | None,
    loading: asyncio.Future[None],
) -> None:
    ends = time.monotonic() + config.drain_delay_secs + config.exit_timeout_secs
    _LOG.info("stopping: not serving any more; running requests get %g s to finish", config.exit_timeout_secs)
    services.drain()
    server.set_serving(False)
    await asyncio.sleep(config.drain_delay_secs)
    await server.stop(max(0.0, ends - time.monotonic()))
    # A load cannot be interrupted; what it would have served is not called any more.
    await asyncio.wait({loading}, timeout=max(0.0, ends - time.monotonic()))
    closing = run_in_background(lambda: repository.close(max(0.0, ends - time.monotonic())), "closing")
    idle = loading.done() and await closing
    if metrics:
        await run_in_background(metrics.close, "closing metrics")
    if access_log:
        await run_in_background(access_log.close, "writing the access log")
    if traces:
        await run_in_background(lambda: traces.close(_TRACES_SECONDS), "sending the last traces")
    if idle:
        _LOG.info("stopped")
        return
    _leave("stopped, though a run or a load had not ended: --exit-timeout-secs is over")


def _leave(why: str) -> NoReturn:
    """Ends the process while a run or a load goes on.

    Native code that came back to an interpreter which is being torn down would end it with an abort.
    """
    _LOG.warning(why)
    logging.shutdown()
    os._exit(0)


def _stop_signal(signals: Sequence[signal.Signals]) -> asyncio.Future[None]:
    """A future that the first of the signals completes. The second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()
    counter = SignalCounter()

    def on_signal(number: int) -> None:
        if counter.count(number, loop.time()) > 1:
            _LOG.warning("stopping at once: requests that run are lost")
            os._exit(_FORCED_STATUS)
        if not stop.done():
            stop.set_result(None)

    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    return stop
