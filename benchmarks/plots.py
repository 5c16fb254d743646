"""A run as pictures: throughput against concurrency, latency against load, cost per request."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.payload import Shape
from benchmarks.plan import IN_FLIGHT, MANY, ONE
from benchmarks.results import Results
from benchmarks.spread import spread

NAMES = ("throughput.png", "latency.png", "cost.png")
_DPI = 120


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes the three pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in NAMES]
    _throughput(results, paths[0])
    _latency(results, paths[1])
    _cost(results, paths[2])
    return paths


def _color(results: Results, server: str) -> str:
    return f"C{list(results.servers).index(server)}"


def _throughput(results: Results, path: Path) -> None:
    figure, (one, many) = plt.subplots(1, 2, figsize=(13, 4.8))
    for axes, shape in ((one, ONE), (many, MANY)):
        _rates(results, axes, shape)
        axes.set_title(f"{shape.rows}-row requests" if shape.rows > 1 else "one-row requests")
    # Servers of one-row requests are worlds apart; those of large ones are not.
    one.set_yscale("log")
    _plain(one.yaxis)
    many.set_ylim(bottom=0)
    _legend_beside(many, one)
    _save(figure, path)


def _rates(results: Results, axes: Axes, shape: Shape) -> None:
    for server in results.servers:
        points = [(count, rate) for count in IN_FLIGHT if (rate := results.figure(server, shape, count))]
        if not points:
            continue
        at = [count for count, _ in points]
        middle = [rate.median * shape.rows for _, rate in points]
        low = [(rate.median - rate.low) * shape.rows for _, rate in points]
        high = [(rate.high - rate.median) * shape.rows for _, rate in points]
        style = "--" if server.startswith("echo") else "-"
        color = _color(results, server)
        axes.errorbar(at, middle, [low, high], label=server, color=color, linestyle=style, marker="o", capsize=3)
    if limit := results.best_limit(shape.datatype):
        axes.axhline(limit[1].median, color="black", linewidth=1, linestyle=":", label="the limit: ONNX Runtime alone")
    axes.set_xscale("log", base=2)
    axes.set_xticks(IN_FLIGHT, [str(count) for count in IN_FLIGHT])
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("rows/s")
    axes.grid(alpha=0.3, which="both")


def _latency(results: Results, path: Path) -> None:
    figure, (middle, tail) = plt.subplots(1, 2, figsize=(13, 4.8), sharey=True)
    for axes, name, label in ((middle, "p50_us", "p50"), (tail, "p99_us", "p99")):
        for server in results.servers:
            rates = sorted({item.load.rate for item in results.opened if item.server == server and item.share is None})
            values = [
                spread([getattr(i.load, name) for i in results.opened if (i.server, i.load.rate) == (server, rate)])
                for rate in rates
            ]
            if values:
                medians = [value.median / 1e3 for value in values]
                axes.plot(rates, medians, label=server, color=_color(results, server), marker="o")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{label} from the moment a request was due")
        axes.set_xlabel("one-row requests/s, at even intervals")
        _plain(axes.xaxis)
        _plain(axes.yaxis)
        axes.grid(alpha=0.3, which="both")
    middle.set_ylabel("ms")
    _legend_beside(tail, middle)
    _save(figure, path)


def _cost(results: Results, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 4.8))
    found = [
        (server, cost) for server in results.servers if (cost := results.figure(server, ONE, 32, "cpu_us_per_request"))
    ]
    for position, (server, cost) in enumerate(reversed(found)):
        error = [[cost.median - cost.low], [cost.high - cost.median]]
        axes.barh(position, cost.median, xerr=error, color=_color(results, server), capsize=3)
        axes.text(cost.high * 1.08, position, f"{cost.median:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(found)), [server for server, _ in reversed(found)])
    best = results.best_limit("FP32")
    if best and (own := results.limit("FP32", best[0], "cpu_us_per_row")):
        axes.axvline(own.median, color="black", linewidth=1, linestyle=":", label="ONNX Runtime's own share")
    _legend_beside(axes, axes)
    axes.set_xscale("log")
    _plain(axes.xaxis)
    axes.margins(x=0.15)
    axes.set_xlabel("server CPU per one-row request at 32 in flight, us")
    axes.grid(alpha=0.3, axis="x", which="both")
    _save(figure, path)


def _plain(axis: Axis) -> None:
    """Numbers as people write them, and only at powers of ten and halves between."""
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_beside(place: Axes, source: Axes) -> None:
    handles, labels = source.get_legend_handles_labels()
    if handles:
        place.legend(handles, labels, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
