"""RPC ModelStatistics: the statistics of versions that can be called, as Triton's clients read them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.background import run_in_background
from inferd_server.frontend.figures import Source
from inferd_server.frontend.services import Handler
from inferd_server.observability.statistics import Duration, Histogram, Snapshot
from inferd_server.repository.manager import RepositoryManager
from inferd_server.repository.response_cache import CacheStatistics


class StatisticsService:
    """The extension `statistics`. Where there are several workers, their figures add up."""

    names: Sequence[str] = ("statistics",)

    def __init__(self, repository: RepositoryManager, source: Source) -> None:
        self._repository = repository
        self._source = source

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {"ModelStatistics": self.model_statistics}

    def model_statistics(self, request: pb.ModelStatisticsRequest) -> asyncio.Future[pb.ModelStatisticsResponse]:
        """Of one version, of every version of a model where none is named, of everything where no model is.

        Raises as `lifecycle.find` does where a model is named that cannot be called.
        """
        version: int | None = None
        if request.name:
            # For its errors: without a version it says why the model has none that can be called.
            servable = self._repository.find(request.name, request.version)
            version = servable.version if request.version else None
        # Not in the event loop: it waits for the other workers.
        return run_in_background(lambda: self._response(request.name, version), "statistics")

    def _response(self, name: str, version: int | None) -> pb.ModelStatisticsResponse:
        found: dict[tuple[str, int], Snapshot] = {}
        caches: dict[tuple[str, int], CacheStatistics] = {}
        for figures in self._source().values():
            for each in figures.versions:
                if name in ("", each.name) and version in (None, each.version):
                    key = each.name, each.version
                    found[key] = found[key] + each.statistics if key in found else each.statistics
                    caches[key] = caches[key] + each.cache if key in caches else each.cache
        models = [_message(*key, found[key], caches[key]) for key in sorted(found)]
        return pb.ModelStatisticsResponse(model_stats=models)


def _message(name: str, version: int, snapshot: Snapshot, cache: CacheStatistics) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=name,
        version=str(version),
        last_inference=snapshot.last_inference_ms,
        inference_count=snapshot.rows,
        execution_count=snapshot.executions,
        inference_stats=pb.InferStatistics(
            success=_total(snapshot.request),
            fail=_duration(snapshot.failed),
            queue=_total(snapshot.queue),
            compute_input=_total(snapshot.compute_input),
            compute_infer=_total(snapshot.compute_infer),
            compute_output=_total(snapshot.compute_output),
            cache_hit=pb.StatisticDuration(count=cache.hits, ns=cache.hit_ns),
            cache_miss=pb.StatisticDuration(count=cache.misses, ns=cache.miss_ns + cache.insertion_ns),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=rows,
                compute_input=pb.StatisticDuration(count=batch.runs, ns=batch.input_ns),
                compute_infer=pb.StatisticDuration(count=batch.runs, ns=batch.infer_ns),
                compute_output=pb.StatisticDuration(count=batch.runs, ns=batch.output_ns),
            )
            for rows, batch in snapshot.batches.items()
        ],
    )


def _total(histogram: Histogram) -> pb.StatisticDuration:
    return _duration(histogram.total)


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.times, ns=duration.ns)
