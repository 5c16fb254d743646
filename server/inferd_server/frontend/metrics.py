"""The figures as Prometheus reads them, made when it asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from inferd_server.frontend.figures import Figures, Source, VersionFigures
from inferd_server.observability.statistics import DURATION_BOUNDS_NS, Histogram, Snapshot

_SECOND_NS = 1e9
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MODEL = ("model", "version")

_DURATIONS: tuple[tuple[str, str, Callable[[Snapshot], Histogram]], ...] = (
    ("request", "Successful requests, from arrival to answer.", lambda snapshot: snapshot.request),
    ("queue", "Waiting in the queue.", lambda snapshot: snapshot.queue),
    ("compute_input", "Gathering the inputs of a request's batch.", lambda snapshot: snapshot.compute_input),
    ("compute_infer", "The run of a request's batch.", lambda snapshot: snapshot.compute_infer),
    ("compute_output", "Answering the requests of a request's batch.", lambda snapshot: snapshot.compute_output),
)


class FiguresCollector(Collector):
    """Metrics of `workers` workers. Where there are several, each series has the label `worker`.

    A worker that dies and is replaced counts from 0 again, which Prometheus understands of a series, and not of a sum.
    """

    def __init__(self, source: Source, workers: int) -> None:
        self._source = source
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        """One scrape."""
        by_worker = self._source()
        if self._workers == 1:
            yield from _families([((), figures) for figures in by_worker.values()], ())
        else:
            yield from _families([((str(number),), figures) for number, figures in by_worker.items()], ("worker",))
        up = GaugeMetricFamily("inferd_worker_up", "Whether the worker answers.", labels=["worker"])
        for number in range(self._workers):
            up.add_metric([str(number)], int(number in by_worker))
        yield up

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not ask for a scrape to know the names."""
        return ()


def registry(source: Source, workers: int) -> CollectorRegistry:
    """A registry of this server's metrics and no others."""
    made = CollectorRegistry()
    made.register(FiguresCollector(source, workers))
    return made


Labelled = Sequence[tuple[tuple[str, ...], Figures]]


def _families(workers: Labelled, names: tuple[str, ...]) -> Iterator[Metric]:
    versions = [
        ((each.name, str(each.version), *labels), each) for labels, figures in workers for each in figures.versions
    ]
    model = (*_MODEL, *names)
    for name, text, select in _DURATIONS:
        durations = HistogramMetricFamily(f"inferd_{name}_duration_seconds", text, labels=model)
        for labels, each in versions:
            _add_durations(durations, labels, select(each.statistics))
        yield durations
    sizes = HistogramMetricFamily("inferd_batch_size_rows", "Rows of the batches that were run.", labels=model)
    rows = CounterMetricFamily("inferd_rows", "Rows that were run.", labels=model)
    successes = CounterMetricFamily("inferd_requests_succeeded", "Requests that were answered.", labels=model)
    failures = CounterMetricFamily("inferd_requests_failed", "Requests that failed.", labels=(*model, "reason"))
    pending = GaugeMetricFamily("inferd_pending_requests", "Requests that wait in the queue.", labels=model)
    last = GaugeMetricFamily(
        "inferd_last_inference_timestamp_seconds",
        "When a batch last ended, since the epoch.",
        labels=model,
    )
    for labels, each in versions:
        snapshot = each.statistics
        _add_sizes(sizes, labels, snapshot)
        rows.add_metric(labels, snapshot.rows)
        successes.add_metric(labels, snapshot.request.total.times)
        for reason, duration in snapshot.failures.items():
            failures.add_metric((*labels, reason), duration.times)
        pending.add_metric(labels, each.pending)
        last.add_metric(labels, snapshot.last_inference_ms / 1e3)
    yield from (sizes, rows, successes, failures, pending, last)
    yield from _process(workers, names, versions)


def _process(
    workers: Labelled, names: tuple[str, ...], versions: Sequence[tuple[tuple[str, ...], VersionFigures]]
) -> Iterator[Metric]:
    model = (*_MODEL, *names)
    ready = GaugeMetricFamily("inferd_model_ready", "Whether the version can be called.", labels=(*model, "provider"))
    for labels, each in versions:
        ready.add_metric((*labels, each.provider), 1)
    refused = CounterMetricFamily(
        "inferd_requests_refused", "Requests for no version that can be called.", labels=(*names, "reason")
    )
    loads = CounterMetricFamily("inferd_model_loads", "Loads of the version.", labels=(*model, "outcome"))
    seconds = CounterMetricFamily("inferd_model_load_duration_seconds", "Time spent in its loads.", labels=model)
    memory = GaugeMetricFamily("inferd_resident_memory_bytes", "Memory that the process holds.", labels=names)
    for labels, figures in workers:
        for name, version in figures.not_ready:
            ready.add_metric((name, str(version), *labels, ""), 0)
        for reason, duration in figures.refusals.items():
            refused.add_metric((*labels, reason), duration.times)
        for (name, version), counted in figures.loads.items():
            loads.add_metric((name, str(version), *labels, "success"), counted.succeeded)
            loads.add_metric((name, str(version), *labels, "failure"), counted.failed)
            seconds.add_metric((name, str(version), *labels), counted.ns / _SECOND_NS)
        if figures.resident_bytes is not None:
            memory.add_metric(labels, figures.resident_bytes)
    yield from (ready, refused, loads, seconds, memory)


def _add_durations(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    bounds = [*(str(bound / _SECOND_NS) for bound in DURATION_BOUNDS_NS), "+Inf"]
    family.add_metric(labels, list(zip(bounds, histogram.cumulative, strict=True)), sum_value=histogram.ns / _SECOND_NS)


def _add_sizes(family: HistogramMetricFamily, labels: Sequence[str], snapshot: Snapshot) -> None:
    buckets = [
        (str(float(bound)), sum(batch.runs for rows, batch in snapshot.batches.items() if rows <= bound))
        for bound in _BATCH_BOUNDS
    ]
    family.add_metric(labels, [*buckets, ("+Inf", snapshot.executions)], sum_value=snapshot.rows)
