"""A run as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.payload import Shape
from benchmarks.plan import IN_FLIGHT, MANY, MANY_BYTE, ONE, ONE_BYTE, PEAK_SHARE
from benchmarks.results import OpenSample, Results
from benchmarks.spread import Spread, spread
from benchmarks.targets import outcomes

_MB = 1e6
_MISSING = "-"


def markdown(results: Results) -> str:
    """The whole report. Figures are medians over the rounds, with the lowest and the highest in brackets."""
    parts = [
        "# Benchmarks",
        "",
        *(f"- {name}: {value}" for name, value in {**results.machine, **results.settings}.items()),
        "",
        "Each figure is the median of the rounds, with the lowest and the highest in brackets. Absolute figures are",
        "this machine's, where load and server share the cores; ratios travel.",
        "",
        "## Targets",
        "",
        *_targets(results),
        "",
        "## The limit: ONNX Runtime in process, 1 intra-op thread, spinning off",
        "",
        *_limits(results),
        "",
        "## One-row requests, FP32: requests/s by requests in flight",
        "",
        *_rates(results, ONE, IN_FLIGHT),
        "",
        "## 64-row requests, FP32: requests/s by requests in flight",
        "",
        *_rates(results, MANY, IN_FLIGHT),
        "",
        "## uint8 inputs: requests/s",
        "",
        *_bytes(results),
        "",
        "## Latency of one-row requests in the closed loop, us: p50 / p99 / p99.9",
        "",
        *_latencies(results),
        "",
        "## Cost: server CPU per request, and peak memory",
        "",
        *_costs(results),
        "",
        "## Open loop, one-row requests: p50 / p99 / p99.9 in us from the moment a request was due",
        "",
        *_open(results),
    ]
    if results.extras:
        parts += ["", "## Scenarios", "", *_extras(results)]
    if results.trials:
        parts += ["", "## Peers' settings tried (one-row requests/s, 32 in flight; the best is measured above)", ""]
        parts += _trials(results)
    if results.failures:
        parts += ["", "## Not measured, and why", ""]
        parts += [f"- {item.server}, {item.what}: {item.reason}" for item in results.failures]
    return "\n".join(parts) + "\n"


def target_lines(results: Results) -> list[str]:
    """The targets for a terminal."""
    words = {True: "met", False: "NOT MET", None: "-"}
    return [f"{words[item.met]:8} {item.measure}: {item.figure} (target {item.target})" for item in outcomes(results)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _text(value: Spread | None, digits: int = 0) -> str:
    return value.text(digits) if value else _MISSING


def _targets(results: Results) -> list[str]:
    words = {True: "met", False: "**not met**", None: "not measured"}
    rows = [[item.measure, item.target, item.figure, words[item.met]] for item in outcomes(results)]
    return _table(["measure", "target", "figure", ""], rows)


def _limits(results: Results) -> list[str]:
    rows = []
    for datatype in ("FP32", "UINT8"):
        best = results.best_limit(datatype)
        for size in sorted({sample.limit.rows for sample in results.limits}):
            mark = " (the limit)" if best and best[0] == size else ""
            figures = [
                _text(results.limit(datatype, size)) + mark,
                _text(results.limit(datatype, size, "run_us"), 1),
                _text(results.limit(datatype, size, "cpu_us_per_row"), 1),
            ]
            rows.append([datatype, str(size), *figures])
    return _table(["input", "rows a run", "rows/s", "median run, us", "CPU a row, us"], rows)


def _rates(results: Results, shape: Shape, in_flights: Sequence[int]) -> list[str]:
    best = results.best_limit(shape.datatype)
    limit = best[1].median if best else None
    rows = []
    for server in results.servers:
        found = [results.figure(server, shape, count) for count in in_flights]
        if not any(found):
            continue
        top = max(item.median for item in found if item)
        share = f"{top * shape.rows / limit:.2f}" if limit and not server.startswith("echo") else _MISSING
        rows.append([server, *(_text(item) for item in found), share])
    return _table(["server", *map(str, in_flights), "best, of the limit"], rows)


def _bytes(results: Results) -> list[str]:
    cells = sorted(
        {(item.shape, item.in_flight) for item in results.closed if item.shape in (ONE_BYTE, MANY_BYTE)},
        key=lambda cell: (cell[0].rows, cell[1]),
    )
    rows = []
    for server in results.servers:
        found = [results.figure(server, shape, in_flight) for shape, in_flight in cells]
        if any(found):
            rows.append([server, *map(_text, found)])
    return _table(["server", *(f"{shape.rows} rows, {in_flight} in flight" for shape, in_flight in cells)], rows)


def _latencies(results: Results) -> list[str]:
    rows = []
    for server in results.servers:
        cells = []
        for in_flight in IN_FLIGHT:
            found = [results.figure(server, ONE, in_flight, name) for name in ("p50_us", "p99_us", "p999_us")]
            cells.append(" / ".join(f"{item.median:,.0f}" for item in found if item) or _MISSING)
        rows.append([server, *cells])
    return _table(["server", *(f"{count} in flight" for count in IN_FLIGHT)], rows)


def _costs(results: Results) -> list[str]:
    cells = [(ONE, 1), (ONE, 32), (ONE, 128), (MANY, 8)]
    rows = []
    for server, setting in results.servers.items():
        costs = [_text(results.figure(server, shape, count, "cpu_us_per_request")) for shape, count in cells]
        memory = [sample for sample in results.memory if sample.server == server]
        peak = spread([sample.peak_bytes / _MB for sample in memory]) if memory else None
        processes = str(max((sample.processes for sample in memory), default=0))
        rows.append([server, setting, *costs, _text(peak), processes])
    head = [f"us at {count} in flight" if shape == ONE else f"us, 64 rows, {count} in flight" for shape, count in cells]
    return _table(["server", "setting", *head, "peak memory, MB", "processes"], rows)


def _open(results: Results) -> list[str]:
    rates = sorted({sample.load.rate for sample in results.opened if sample.share is None})
    rows = []
    for server in results.servers:
        samples = [sample for sample in results.opened if sample.server == server]
        if not samples:
            continue
        cells = [_open_cell([s for s in samples if s.share is None and s.load.rate == rate]) for rate in rates]
        own = [sample for sample in samples if sample.share == PEAK_SHARE]
        at = f"{spread([sample.load.rate for sample in own]).median:,.0f}/s: " if own else ""
        rows.append([server, *cells, at + _open_cell(own)])
    lines = _table(["server", *(f"{rate:,.0f}/s" for rate in rates), "70 % of own peak"], rows)
    loads = [sample.load for sample in results.opened]
    if loads:
        late50, late99 = (spread([getattr(load, name) for load in loads]) for name in ("late_p50_us", "late_p99_us"))
        cost = spread([load.own_cpu_us for load in loads])
        lines += [
            "",
            "A rate beyond nine tenths of a server's own peak is not asked of it. The load comes at even intervals",
            f"from a generator of the project's own, which took {cost.text(0)} us of CPU a request and",
            f"handed requests over {late50.text(0)} us late (p50; p99 {late99.text(0)}).",
            "That is part of the latencies shown; the echo's row is what they are without a model.",
        ]
    return lines


def _open_cell(samples: Sequence[OpenSample]) -> str:
    loads = [sample.load for sample in samples]
    if not loads:
        return _MISSING
    figures = [spread([getattr(load, name) for load in loads]).median for name in ("p50_us", "p99_us", "p999_us")]
    kept = spread([load.kept for load in loads]).median
    behind = f" (kept up with {kept:.0%})" if kept < 0.99 else ""
    return " / ".join(f"{figure:,.0f}" for figure in figures) + behind


def _extras(results: Results) -> list[str]:
    rows = [[name, spread(values).text(2 if max(values) < 100 else 0)] for name, values in results.extras.items()]
    return _table(["scenario", "figure"], rows)


def _trials(results: Results) -> list[str]:
    rows = [
        [item.server, item.setting, f"{item.requests_per_s:,.0f}" if item.requests_per_s else f"failed: {item.failure}"]
        for item in results.trials
    ]
    return _table(["peer", "setting", "requests/s"], rows)
