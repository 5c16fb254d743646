"""What every scheduler counts of its requests, beside what it runs."""

from __future__ import annotations

from collections.abc import Callable

from inferd_server.errors import ServerError
from inferd_server.observability.failures import CANCELLED, reason_of
from inferd_server.observability.statistics import Statistics, stages_of
from inferd_server.scheduling.observer import Observer
from inferd_server.scheduling.work import Work


class Counting:
    """`statistics` with so many tallies for runs; an `observer` is told of each request."""

    def __init__(self, tallies: int, clock_ns: Callable[[], int], observer: Observer | None) -> None:
        self.statistics = Statistics(tallies)
        self._clock_ns = clock_ns
        self._observer = observer

    def answer_without_run(self, work: Work, answer: Callable[[], ServerError | None]) -> None:
        """Counts a request for which nothing has to run, once `answer` has answered it, or failed it as it says.

        Raises what `answer` does; the request is then still the caller's.
        """
        tally = self.statistics.without_run
        with tally.lock:
            error = answer()
            arrived_ns = work.arrived_ns
            stamps = (arrived_ns, arrived_ns, arrived_ns, max(arrived_ns, self._clock_ns()))
            if error is None:
                tally.count_request(stages_of(arrived_ns, stamps))
        if error is not None:
            self._count_failure(work, error, self._clock_ns())
        elif self._observer is not None:
            self._observer.answered([work], stamps)

    def _count_failure(self, work: Work, error: ServerError | None, now_ns: int) -> None:
        """Without an error where the caller has gone."""
        ns = now_ns - work.arrived_ns
        self.statistics.failures.count(CANCELLED if error is None else reason_of(error), ns)
        if self._observer is not None:
            self._observer.failed(work, error, ns)
