"""The rounds: every server in turn, again and again, so that what the machine does meanwhile hits all of them alike.

A server is started anew for its turn and alone on the machine in it. Each round begins with another server.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import limit, load, model, open_loop, servers
from benchmarks.payload import Payloads
from benchmarks.plan import MOST_SHARE, ONE, PEAK_SHARE, Plan
from benchmarks.process import Failed
from benchmarks.results import (
    ClosedSample,
    Failure,
    LimitSample,
    MemorySample,
    OpenSample,
    Results,
    Trial,
    without_places,
)
from benchmarks.servers import ECHO_AIO, ECHO_FRONT, Running, Server

_TRIAL_SECONDS = 1.5
_LIMIT_SECONDS = 1.0
_TRIAL_IN_FLIGHT = (128, 8, 32)
"""A setting is judged by the last of them, and must outlive them all: the end of a load cancels the calls in flight,
after which some peers' batchers never answer again."""

_SLOW_WARM_UP_SECONDS = 1.5
"""For what may queue for a second: 64-row requests at 32 in flight and more."""


class Rounds:
    """Fills `results` with what the rounds measure."""

    def __init__(self, plan: Plan, results: Results, payloads: Payloads, repository: Path, logs: Path) -> None:
        self._plan = plan
        self._results = results
        self._payloads = payloads
        self._repository = repository
        self._logs = logs

    def best_settings(self, peers: Mapping[str, Sequence[Server]]) -> list[Server]:
        """Each peer in whichever of its settings answers most one-row requests at 32 in flight."""
        chosen = []
        for name, candidates in peers.items():
            trials = [(self._trial(server), server) for server in candidates]
            self._results.trials += [trial for trial, _ in trials]
            answered = [(trial.requests_per_s, server) for trial, server in trials if trial.requests_per_s is not None]
            if answered:
                chosen.append(max(answered, key=lambda pair: pair[0])[1])
            else:
                self.failed(name, "every setting", trials[-1][0].failure)
        return chosen

    def run(self, number: int, measured: Sequence[Server]) -> None:
        """One round."""
        for datatype in model.MODELS:
            say(f"round {number + 1}: the limit, {datatype}")
            path = model.model_file(self._repository, datatype)
            found = limit.measure_apart(path, limit.ROWS, min(_LIMIT_SECONDS, self._plan.seconds))
            self._results.limits += [LimitSample(number, datatype, item) for item in found]
        first = number % len(measured)
        for server in [*measured[first:], *measured[:first]]:
            say(f"round {number + 1}: {server.name}")
            try:
                with servers.started(server, self._payloads, self._logs, ONE) as running:
                    self._turn(number, running)
            except Failed as failure:
                self.failed(server.name, f"start, round {number + 1}", str(failure))

    def failed(self, server: str, what: str, reason: str) -> None:
        """Writes down what could not be measured."""
        reason = without_places(reason)
        say(f"FAILED {server}, {what}: {reason}")
        self._results.failures.append(Failure(server, what, reason))

    def _trial(self, server: Server) -> Trial:
        say(f"trying {server.name}: {server.setting}")
        try:
            with servers.started(server, self._payloads, self._logs, ONE) as running:
                for in_flight in _TRIAL_IN_FLIGHT:
                    call = running.call(ONE)
                    found = load.closed_loop(call, in_flight, _TRIAL_SECONDS, running.process.cpu_seconds)
                running.call(ONE)
        except Failed as failure:
            return Trial(server.name, server.setting, None, without_places(str(failure)))
        return Trial(server.name, server.setting, found.requests_per_s)

    def _turn(self, number: int, running: Running) -> None:
        name = running.server.name
        peak = 0.0
        is_echo = name in (ECHO_AIO, ECHO_FRONT)
        # An echo reads no tensor: what there is to know of it is the cost of a small call.
        for shape, in_flight in self._plan.echo_cells if is_echo else self._plan.cells:
            try:
                call = running.call(shape)
                queues = shape.rows > 1 and in_flight >= 32
                warm_up = _SLOW_WARM_UP_SECONDS if queues else load.WARM_UP_SECONDS
                found = load.closed_loop(call, in_flight, self._plan.seconds, running.process.cpu_seconds, warm_up)
            except Failed as failure:
                where = f"{shape.datatype}, {shape.rows} rows, {in_flight} in flight, round {number + 1}"
                self.failed(name, where, str(failure))
                running.process.check()
                continue
            self._results.closed.append(ClosedSample(number, name, shape, in_flight, found))
            if shape == ONE:
                peak = max(peak, found.requests_per_s)
        if name != ECHO_AIO and peak:
            self._open(number, running, peak)
        process = running.process
        self._results.memory.append(MemorySample(number, name, process.peak_bytes(), len(process.members())))

    def _open(self, number: int, running: Running, peak: float) -> None:
        is_echo = running.server.name == ECHO_FRONT
        fixed = self._plan.echo_rates if is_echo else self._plan.rates
        rates: list[tuple[float | None, float]] = [(None, rate) for rate in fixed if rate <= MOST_SHARE * peak]
        if not is_echo:
            # Seven tenths of what an echo can do is more than the generator can.
            rates.append((PEAK_SHARE, PEAK_SHARE * peak))
        for share, rate in rates:
            try:
                call = running.call(ONE)
                found = open_loop.measure(call, rate, self._plan.open_seconds, running.process.cpu_seconds)
            except Failed as failure:
                self.failed(running.server.name, f"open loop at {rate:.0f}/s, round {number + 1}", str(failure))
                running.process.check()
                continue
            self._results.opened.append(OpenSample(number, running.server.name, share, found))


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)
