"""What runs the requests of one version, as those see it who bring them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from inferd_server.errors import ServerError
from inferd_server.observability.statistics import Statistics
from inferd_server.scheduling.work import Work


class Closed(Exception):
    """The scheduler takes no more requests: its version is being replaced or unloaded."""


class Scheduler(Protocol):
    """Takes requests over and completes them: a model's batcher, or the pipeline of an ensemble."""

    statistics: Statistics
    """Of every request from `enqueue` on."""

    @property
    def pending(self) -> int:
        """Requests that wait."""

    def answer_without_run(self, work: Work, answer: Callable[[], ServerError | None]) -> None:
        """Counts a request for which nothing has to run, once `answer` has answered it, or failed it as it says.

        Raises what `answer` does; the request is then still the caller's.
        """

    def enqueue(self, work: Work) -> None:
        """Takes a request over: from here on the scheduler completes it, once `start` or `run_here` is called.

        Raises ServerError where it is refused, and Closed; then the request is still the caller's.
        """

    def start(self) -> None:
        """Has what is enqueued run, by threads of the scheduler's own."""

    @property
    def can_run_here(self) -> bool:
        """Whether `run_here` has something to gain."""

    def run_here(self) -> None:
        """As `start`, but what can be is run in the calling thread: only one that others can do without may call."""

    def close(self, timeout: float) -> bool:
        """Takes no more requests, and finishes those it has within `timeout` seconds.

        What has not begun to run by then is failed with Draining. False where a run still goes on.
        """
