"""What two looks at a server's counters say: means, and how much a second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from inferd_client.model_statistics import Duration, ModelStatistics

Counters: TypeAlias = Mapping[tuple[str, str], ModelStatistics]
"""A look: the counters by model and version."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a version did. The times are means a request, in microseconds; None is what has not happened."""

    model: str
    version: str
    requests: int
    failures: int
    rows: int
    mean_batch_size: float | None
    queue_us: float | None
    compute_input_us: float | None
    compute_infer_us: float | None
    compute_output_us: float | None
    rows_per_second: float | None


def look(statistics: Iterable[ModelStatistics]) -> Counters:
    """The counters by model and version, in the order in which people read them."""
    counters = {(version.name, version.version): version for version in statistics}
    return {key: counters[key] for key in sorted(counters, key=by_version)}


def by_version(key: tuple[str, str]) -> tuple[str, int, str]:
    """What sorts models by name and their versions by number."""
    name, version = key
    return name, int(version) if version.isdecimal() else -1, version


def between(before: Counters, after: Counters) -> Counters:
    """What was counted between two looks.

    A version that was not there before, or was loaded anew, counts from zero: all it has was counted since.
    """
    return {
        key: counted if (known := before.get(key)) is None else _difference(known, counted)
        for key, counted in after.items()
    }


def rows_per_second(counted: Counters, seconds: float) -> dict[tuple[str, str], float]:
    """How many rows a second ran, of what was counted in so many seconds."""
    return {key: version.rows / seconds for key, version in counted.items()}


def usage(counted: Counters, rates: Mapping[tuple[str, str], float]) -> list[Usage]:
    """What the counters say. A version without a rate has none to show."""
    return [
        Usage(
            model=version.name,
            version=version.version,
            requests=version.success.count,
            failures=version.fail.count,
            rows=version.rows,
            mean_batch_size=version.rows / version.executions if version.executions else None,
            queue_us=_mean(version.queue),
            compute_input_us=_mean(version.compute_input),
            compute_infer_us=_mean(version.compute_infer),
            compute_output_us=_mean(version.compute_output),
            rows_per_second=rates.get(key),
        )
        for key, version in counted.items()
    ]


def _difference(before: ModelStatistics, after: ModelStatistics) -> ModelStatistics:
    if _went_back(before, after):
        return after
    return replace(
        after,
        rows=after.rows - before.rows,
        executions=after.executions - before.executions,
        success=_since(before.success, after.success),
        fail=_since(before.fail, after.fail),
        queue=_since(before.queue, after.queue),
        compute_input=_since(before.compute_input, after.compute_input),
        compute_infer=_since(before.compute_infer, after.compute_infer),
        compute_output=_since(before.compute_output, after.compute_output),
    )


def _went_back(before: ModelStatistics, after: ModelStatistics) -> bool:
    return (
        after.rows < before.rows
        or after.executions < before.executions
        or after.success.count < before.success.count
        or after.fail.count < before.fail.count
    )


def _since(before: Duration, after: Duration) -> Duration:
    return Duration(after.count - before.count, after.ns - before.ns)


def _mean(duration: Duration) -> float | None:
    return duration.ns / duration.count / 1000 if duration.count else None
