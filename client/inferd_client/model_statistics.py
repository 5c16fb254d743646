"""A server's counters, version by version, as values of the client's own."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from inferd_protocol.grpc_service_pb2 import InferBatchStatistics, ModelStatisticsResponse, StatisticDuration
from inferd_protocol.grpc_service_pb2 import ModelStatistics as Message

from inferd_client.errors import BadResponse


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and the nanoseconds that it took in total."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """The executions of so many rows: their number is the count of each duration."""

    rows: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a version has done since it was loaded.

    `success` and `fail` count requests; `queue` and `compute_*` say where their time went, a request each. `rows` ran
    in `executions`; `batches` tell the executions apart by their rows. `last_inference_ms` is milliseconds since the
    epoch, 0 for never.
    """

    name: str
    version: str
    last_inference_ms: int = 0
    rows: int = 0
    executions: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    batches: tuple[BatchStatistics, ...] = ()


def parse_statistics(data: bytes) -> tuple[ModelStatistics, ...]:
    """A serialised ModelStatisticsResponse, in its order.

    Raises BadResponse for bytes that are none.
    """
    try:
        message = ModelStatisticsResponse.FromString(data)
    except DecodeError as error:
        raise BadResponse(f"the answer to ModelStatistics is not one: {error}") from error
    return tuple(_model(model) for model in message.model_stats)


def _model(message: Message) -> ModelStatistics:
    times = message.inference_stats
    return ModelStatistics(
        message.name,
        message.version,
        message.last_inference,
        message.inference_count,
        message.execution_count,
        _duration(times.success),
        _duration(times.fail),
        _duration(times.queue),
        _duration(times.compute_input),
        _duration(times.compute_infer),
        _duration(times.compute_output),
        _duration(times.cache_hit),
        _duration(times.cache_miss),
        tuple(_batch(batch) for batch in message.batch_stats),
    )


def _batch(message: InferBatchStatistics) -> BatchStatistics:
    return BatchStatistics(
        message.batch_size,
        _duration(message.compute_input),
        _duration(message.compute_infer),
        _duration(message.compute_output),
    )


def _duration(message: StatisticDuration) -> Duration:
    return Duration(message.count, message.ns)
