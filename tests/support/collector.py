"""A real collector of traces: OTLP over gRPC, on a free port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True)
class Span:
    """A span as it was sent."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: tuple[tuple[str, int], ...]
    failed: bool
    message: str
    resource: dict[str, Any]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """The spans that came."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.endpoint = ""

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for batch in request.resource_spans:
            resource = _values(batch.resource.attributes)
            for scope in batch.scope_spans:
                self.spans += [
                    Span(
                        span.name,
                        span.kind,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        _values(span.attributes),
                        tuple((event.name, event.time_unix_nano) for event in span.events),
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        span.status.message,
                        resource,
                    )
                    for span in scope.spans
                ]
        return trace_service_pb2.ExportTraceServiceResponse()

    def below(self, parent: Span) -> list[Span]:
        """The spans whose parent it is, by start."""
        found = [span for span in self.spans if span.parent == parent.id and span.trace == parent.trace]
        return sorted(found, key=lambda span: (span.start_ns, span.end_ns))

    def calls(self) -> list[Span]:
        """The spans of calls, by start."""
        return sorted((span for span in self.spans if "rpc.method" in span.attributes), key=lambda span: span.start_ns)


def _values(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        kind = pair.value.WhichOneof("value")
        return getattr(pair.value, kind)

    return {pair.key: value(pair) for pair in pairs}


@contextlib.contextmanager
def collector() -> Iterator[Collector]:
    """One that listens on 127.0.0.1."""
    collecting = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collecting, server)
    collecting.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collecting
    finally:
        server.stop(None).wait()
