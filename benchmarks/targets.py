"""The project's targets beside what a run found. A target that was not met is shown as that, never redefined."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import scenarios
from benchmarks.plan import IN_FLIGHT, MANY, ONE, PEAK_SHARE
from benchmarks.results import Results
from benchmarks.servers import ECHO_AIO, GRPCIO, NATIVE
from benchmarks.spread import Spread, ratios, spread

_MB = 1e6
_PEERS = {"KServe SDK": 7.0, "MLServer": 9.0, "LitServe": 13.0, "Ray Serve": 30.0}
_NOISE_BYTES = 2e6
"""An allocator's pages come and go by less than this; one byte a request would be several times as much in 600 s."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One target. `met` is None where the run did not measure it."""

    measure: str
    target: str
    figure: str
    met: bool | None


def outcomes(results: Results) -> list[Outcome]:
    """Every target that these benchmarks measure, in the order of their list."""
    subject = NATIVE if NATIVE in results.servers else GRPCIO
    found = [
        _limit_share(results, subject, 32, 0.87),
        _limit_share(results, subject, 128, 0.92),
        _many_share(results, subject),
        _lone_request(results, subject),
        _cpu(results, subject),
        _grpcio(results),
        *(_peer(results, subject, peer, times) for peer, times in _PEERS.items()),
        _best_peer_many(results, subject),
        _tail(results, subject),
        _instances(results),
        _start(results),
        _resident(results),
        _growth(results),
        _kept(results, "1,000 idle connections plus 32 active", scenarios.PEAK_IDLE, scenarios.PEAK),
        _kept(results, "100 models loaded, one busy", scenarios.PEAK_COPIES, scenarios.PEAK_ONE),
    ]
    return [outcome if outcome.met is not None else _unmeasured(outcome) for outcome in found]


def _unmeasured(outcome: Outcome) -> Outcome:
    return Outcome(outcome.measure, outcome.target, "not measured", None)


def _judge(
    measure: str, target: str, found: Spread | None, text: Callable[[Spread], str], met: Callable[[float], bool]
) -> Outcome:
    if found is None:
        return Outcome(measure, target, "", None)
    return Outcome(measure, target, text(found), met(found.median))


def _rates(results: Results, server: str, shape: object, in_flight: int) -> dict[int, float]:
    """Requests/s by round: ratios are taken within a round, so that its noise falls out."""
    return {
        sample.round: sample.load.requests_per_s
        for sample in results.closed
        if (sample.server, sample.shape, sample.in_flight) == (server, shape, in_flight)
    }


def _by_round(above: dict[int, float], below: dict[int, float], factor: float = 1.0) -> Spread | None:
    values = [above[key] * factor / below[key] for key in above if below.get(key)]
    return spread(values) if values else None


def _limits(results: Results) -> tuple[int, dict[int, float]]:
    best = results.best_limit("FP32")
    size = best[0] if best else 0
    return size, {
        sample.round: sample.limit.rows_per_s
        for sample in results.limits
        if (sample.datatype, sample.limit.rows) == ("FP32", size)
    }


def _limit_share(results: Results, subject: str, in_flight: int, least: float) -> Outcome:
    size, limits = _limits(results)
    return _judge(
        f"one-row requests, {in_flight} in flight: rows/s as a share of the limit ({size} rows a run)",
        f">= {least}",
        _by_round(_rates(results, subject, ONE, in_flight), limits),
        lambda found: found.text(2),
        lambda value: value >= least,
    )


def _many_share(results: Results, subject: str) -> Outcome:
    best = results.best(subject, MANY, IN_FLIGHT)
    _, limits = _limits(results)
    in_flight = best[0] if best else 0
    where = f"{in_flight} in flight (its best)" if best else "its best concurrency"
    return _judge(
        f"64-row requests, {where}: rows/s as a share of the limit",
        ">= 0.98",
        _by_round(_rates(results, subject, MANY, in_flight), limits, MANY.rows),
        lambda found: found.text(2),
        lambda value: value >= 0.98,
    )


def _lone_request(results: Results, subject: str) -> Outcome:
    median, own = results.figure(subject, ONE, 1, "p50_us"), results.limit("FP32", 1, "run_us")
    above = spread([median.median - own.median]) if median and own else None
    return _judge(
        "one request at a time: median over h2load, above ONNX Runtime's own time",
        "<= 120 us",
        above,
        lambda found: (
            f"{found.median:.0f} us" + (f" ({median.median:.0f} - {own.median:.0f})" if median and own else "")
        ),
        lambda value: value <= 120,
    )


def _cpu(results: Results, subject: str) -> Outcome:
    cpu = results.figure(subject, ONE, 128, "cpu_us_per_request")
    size, _ = _limits(results)
    own = results.limit("FP32", size, "cpu_us_per_row")
    above = spread([cpu.median - own.median]) if cpu and own else None
    return _judge(
        f"server CPU per one-row request at 128 in flight, above ONNX Runtime's ({size} rows a run)",
        "<= 22 us",
        above,
        lambda found: f"{found.median:.1f} us" + (f" ({cpu.median:.1f} - {own.median:.1f})" if cpu and own else ""),
        lambda value: value <= 22,
    )


def _grpcio(results: Results) -> Outcome:
    rate = _by_round(_rates(results, GRPCIO, ONE, 32), _rates(results, ECHO_AIO, ONE, 32))
    # 5k/s was asked for where a bare grpc.aio echo does 6k/s: the ratio is what travels to another machine.
    return _judge(
        "grpcio transport, 32 in flight, against a bare grpc.aio echo",
        ">= 0.83 (5k/s where the echo does 6k/s)",
        rate,
        lambda found: found.text(2),
        lambda value: value >= 5 / 6,
    )


def _peer(results: Results, subject: str, peer: str, times: float) -> Outcome:
    return _judge(
        f"one-row requests, 32 in flight, against {peer}",
        f">= {times:g}x",
        _by_round(_rates(results, subject, ONE, 32), _rates(results, peer, ONE, 32)),
        lambda found: found.text(1) + "x",
        lambda value: value >= times,
    )


def _best_peer_many(results: Results, subject: str) -> Outcome:
    bests = {peer: best for peer in _PEERS if (best := results.best(peer, MANY, IN_FLIGHT))}
    own = results.best(subject, MANY, IN_FLIGHT)
    if not bests or own is None:
        return Outcome("64-row requests against the best peer", ">= 1.1x", "", None)
    peer = max(bests, key=lambda name: bests[name][1].median)
    return _judge(
        f"64-row requests, each at its best concurrency, against the best peer ({peer})",
        ">= 1.1x",
        _by_round(_rates(results, subject, MANY, own[0]), _rates(results, peer, MANY, bests[peer][0])),
        lambda found: found.text(2) + "x",
        lambda value: value >= 1.1,
    )


def _tail(results: Results, subject: str) -> Outcome:
    idle = results.figure(subject, ONE, 1, "p50_us")
    tails = [item.load.p99_us for item in results.opened if (item.server, item.share) == (subject, PEAK_SHARE)]
    found = spread([tail / idle.median for tail in tails]) if idle and tails else None
    return _judge(
        "open loop at 70 % of own peak: p99 over the idle median (h2load's, one in flight)",
        "<= 10x",
        found,
        lambda value: value.text(1) + "x",
        lambda value: value <= 10,
    )


def _instances(results: Results) -> Outcome:
    values = ratios(results.extra(scenarios.TWO_INSTANCES), results.extra(scenarios.ONE_INSTANCE))
    return _judge(
        "2 instances with 64-row requests against one",
        ">= 1.6x",
        spread(values) if values else None,
        lambda found: found.text(2) + "x",
        lambda value: value >= 1.6,
    )


def _start(results: Results) -> Outcome:
    values = results.extra(scenarios.START)
    return _judge(
        "from process start to SERVING, reference CNN",
        "<= 1.0 s",
        spread(values) if values else None,
        lambda found: found.text(2) + " s",
        lambda value: value <= 1.0,
    )


def _resident(results: Results) -> Outcome:
    values = results.extra(scenarios.RESIDENT_LOADED)
    before = results.extra(scenarios.RESIDENT)
    idle = f"; {statistics.median(before) / _MB:.0f} MB before load" if before else ""
    return _judge(
        "resident memory serving the CNN, after load",
        "<= 150 MB",
        spread(values) if values else None,
        lambda found: f"{found.median / _MB:.0f} MB{idle}",
        lambda value: value <= 150 * _MB,
    )


def _growth(results: Results) -> Outcome:
    values, seconds = results.extra(scenarios.SOAK_GROWTH), results.extra(scenarios.SOAK_SECONDS)
    return _judge(
        f"growth over {seconds[0] if seconds else 0:.0f} s at full load",
        "none (over 600 s)",
        spread(values) if values else None,
        lambda found: f"{found.median / _MB:.1f} MB",
        lambda value: value <= _NOISE_BYTES,
    )


def _kept(results: Results, measure: str, loaded: str, bare: str) -> Outcome:
    values = [1 - ratio for ratio in ratios(results.extra(loaded), results.extra(bare))]
    return _judge(
        measure,
        "<= 10 % off the peak",
        spread(values) if values else None,
        lambda found: f"{found.median:.1%} off ({found.low:.1%} to {found.high:.1%})",
        lambda value: value <= 0.10,
    )
