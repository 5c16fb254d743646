"""Traces for OpenTelemetry: where a request's time went, in the trace of the caller who sent it.

A request has a span for the call, below it one for the model that ran, and below that `queue` and `compute`. The
steps of an ensemble are models beside the ensemble's own. The caller's context comes as W3C Trace Context in the
call's metadata (https://www.w3.org/TR/trace-context/): one that is marked as sampled is followed, one that is not is
left alone, and of the requests without any one in `rate` begins a trace.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence

from inferd_protocol.methods import SERVICE
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Span,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from inferd_server.core.description import SERVER_NAME, server_version
from inferd_server.frontend.call import Metadata
from inferd_server.frontend.sampling import Sampler, Sampling
from inferd_server.observability.failures import CANCELLED, reason_of
from inferd_server.observability.statistics import Stamps
from inferd_server.scheduling.work import Work

_LOG = logging.getLogger(__name__)

_METHOD = f"{SERVICE}/ModelInfer"
_OK = "OK"
_CONTEXT_KEY = "traceparent"


class Traces:
    """Makes the traces and sends them to the collector at `endpoint`, OTLP over gRPC. From any thread.

    `http://` and `https://` say whether it speaks TLS. What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say of
    this process goes with them. Spans that the collector does not take in time are lost, never waited for.
    """

    def __init__(self, endpoint: str, sampling: Sampling) -> None:
        own = Resource({SERVICE_NAME: SERVER_NAME, SERVICE_VERSION: server_version()})
        # Sampled is what is begun at all: the decision is `begin`'s, at a fraction of the cost of a span.
        self._provider = TracerProvider(
            ALWAYS_ON, Resource.create().merge(own).merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._exporter = OTLPSpanExporter(endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer(SERVER_NAME, server_version())
        self._context = TraceContextTextMapPropagator()
        self._server = Sampler(sampling)
        self._models: dict[str, Sampler] = {}

    def sample(self, server: Sampling, models: Mapping[str, Sampling]) -> None:
        """Decides anew: by model where it has its own sampling, else by the server's. Starts to count again."""
        self._models = {name: Sampler(sampling) for name, sampling in models.items()}
        self._server = Sampler(server)

    def begin(self, metadata: Metadata, model: str, request_id: str, now_ns: int) -> RequestTrace | None:
        """The trace of a request to `model` that came at `now_ns`; None where it has none."""
        sampler = self._models.get(model, self._server)
        if not sampler.on:
            return None
        context = None
        for key, _ in metadata:
            if key == _CONTEXT_KEY:
                context = self._context.extract(dict(metadata), Context())
        caller = INVALID_SPAN_CONTEXT if context is None else get_current_span(context).get_span_context()
        if not (caller.trace_flags.sampled if caller.is_valid else sampler.takes()):
            return None
        return RequestTrace(self._tracer, context or Context(), request_id, now_ns)

    def observe(self, name: str, version: int) -> _VersionTraces:
        """The observer of a version's batcher."""
        return _VersionTraces(name, str(version))

    def close(self, timeout: float) -> None:
        """Sends what there is, for at most `timeout` seconds, and ends."""
        # The flush has a time-out of its own, and ignores it: it tries again for as long as an export may take.
        flush = threading.Thread(target=self._provider.force_flush, name="sending-last-traces", daemon=True)
        flush.start()
        flush.join(timeout)
        if flush.is_alive():
            _LOG.warning("the last traces are lost: the collector did not take them in %g s", timeout)
            self._exporter.shutdown()
        self._provider.shutdown()


class RequestTrace:
    """One traced request. Times are on `time.monotonic_ns`'s clock."""

    def __init__(self, tracer: Tracer, caller: Context, request_id: str, arrived_ns: int) -> None:
        self._tracer = tracer
        # A span's times are the wall clock's; that may be set while a request runs, which must not bend its spans.
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._call = tracer.start_span(
            _METHOD,
            caller,
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": _METHOD, "inferd.request.id": request_id},
            start_time=self._epoch_ns + arrived_ns,
        )
        self._below_call = set_span_in_context(self._call, Context())

    def ran(self, name: str, version: str, rows: int, arrived_ns: int, stamps: Stamps) -> None:
        """A model ran. The pieces of a request that was split may have run at once: their stages are shown in a row."""
        picked_ns, began_ns, ended_ns, done_ns = (self._epoch_ns + ns for ns in stamps)
        model = self._model(name, version, rows, arrived_ns)
        below = set_span_in_context(model, Context())
        queue = self._tracer.start_span("queue", below, start_time=self._epoch_ns + arrived_ns)
        queue.end(picked_ns)
        compute = self._tracer.start_span("compute", below, start_time=picked_ns)
        compute.add_event("input gathered", timestamp=began_ns)
        compute.add_event("run", timestamp=ended_ns)
        compute.end(done_ns)
        model.end(done_ns)

    def failed(self, name: str, version: str, rows: int, arrived_ns: int, error: Exception | None, ns: int) -> None:
        """A model's request failed `ns` nanoseconds after it came; without an error because its caller has gone."""
        model = self._model(name, version, rows, arrived_ns)
        _mark(model, error)
        model.end(self._epoch_ns + arrived_ns + ns)

    def end(self, code: str, error: Exception | None) -> None:
        """The call ended with a status; with CANCELLED and no error because its caller has gone."""
        # Whoever comes second, an answer or the news that nobody waits for it, changes nothing.
        if not self._call.is_recording():
            return
        self._call.set_attribute("rpc.response.status_code", code)
        if code != _OK:
            _mark(self._call, error)
        self._call.end()

    def _model(self, name: str, version: str, rows: int, arrived_ns: int) -> Span:
        return self._tracer.start_span(
            name,
            self._below_call,
            attributes={"inferd.model.name": name, "inferd.model.version": version, "inferd.rows": rows},
            start_time=self._epoch_ns + arrived_ns,
        )


class _VersionTraces:
    """The requests of one version."""

    def __init__(self, name: str, version: str) -> None:
        self._name = name
        self._version = version

    def answered(self, works: Sequence[Work], stamps: Stamps) -> None:
        for work in works:
            if work.reply.trace is not None:
                work.reply.trace.ran(self._name, self._version, work.rows, work.arrived_ns, stamps)

    def failed(self, work: Work, error: Exception | None, ns: int) -> None:
        if work.reply.trace is not None:
            work.reply.trace.failed(self._name, self._version, work.rows, work.arrived_ns, error, ns)


def _mark(span: Span, error: Exception | None) -> None:
    """Says that what a span stands for failed, and how; without an error because the caller has gone."""
    span.set_attribute("error.type", CANCELLED if error is None else reason_of(error))
    span.set_status(SpanStatus(StatusCode.ERROR, "the caller has gone" if error is None else str(error)))
