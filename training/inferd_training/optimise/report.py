"""What was tried and why one was taken: as JSON, as a table, and as a plot of accuracy against speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from inferd_training.optimise.judge import LEAST_GAIN, ORIGINAL, Judged

RULE = (
    "Of the candidates that the gate passes, the one with the largest geometric mean of the gains over the original at "
    f"1, 8 and 64 rows a run; none where that is below {LEAST_GAIN:g}."
)


def document(
    judged: Sequence[Judged],
    chosen: Judged | None,
    *,
    held_out: str,
    max_drop_points: float,
    notes: Sequence[str],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """The figures of all candidates as JSON."""
    (original,) = [one for one in judged if one.candidate.name == ORIGINAL]
    return {
        "chosen": chosen.candidate.name if chosen else None,
        "rule": RULE,
        "max_accuracy_drop_points": max_drop_points,
        "held_out": held_out,
        "machine": dict(machine),
        "notes": list(notes),
        "candidates": [
            {
                "name": one.candidate.name,
                "how": one.candidate.how,
                "bytes": one.nbytes,
                "size": one.nbytes / original.nbytes,
                "speed": one.speed,
                "runs": {
                    str(rows): {
                        **asdict(timing),
                        "rows_per_second": rows * 1e6 / timing.median_us,
                        "gain": one.gains[rows],
                    }
                    for rows, timing in one.timings.items()
                },
                "comparison": one.comparison.as_json(),
                "refused": one.refused,
                "int8_nodes": list(one.candidate.int8_nodes),
                "moves": list(one.candidate.moves),
            }
            for one in judged
        ],
    }


def table(judged: Sequence[Judged], chosen: Judged | None) -> str:
    """The candidates as a Markdown table, the fastest last."""
    batches = sorted(judged[0].timings)
    (original,) = [one for one in judged if one.candidate.name == ORIGINAL]
    heads = [
        "candidate",
        "size",
        *(f"{rows} row{'s' * (rows > 1)}, us" for rows in batches),
        *(f"gain, {rows}" for rows in batches),
        "accuracy",
        "drop, points (95 %)",
        "top-1 agreement",
        "worst class",
        "",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for one in sorted(judged, key=lambda item: item.speed):
        compared = one.comparison
        verdict = "**chosen**" if one is chosen else "refused" if one.refused else ""
        cells = [
            one.candidate.name,
            f"{one.nbytes / original.nbytes:.2f}x",
            *(f"{t.median_us:.1f} ({t.low_us:.1f}-{t.high_us:.1f})" for t in (one.timings[rows] for rows in batches)),
            *(f"{one.gains[rows]:.2f}x" for rows in batches),
            f"{100 * compared.accuracy_after:.2f} %",
            f"{compared.drop:+.2f} ({compared.low:+.2f} to {compared.high:+.2f})",
            f"{100 * compared.agreement:.2f} %",
            f"{compared.worst_label} {compared.worst_change:+.1f}",
            verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    refused = [f"- {one.candidate.name}: {one.refused}" for one in judged if one.refused]
    return "\n".join([*lines, *(["", "Refused:", "", *refused] if refused else [])]) + "\n"


def plot(judged: Sequence[Judged], chosen: Judged | None, path: Path) -> None:
    """Accuracy against speed, with the line of those that no other beats in both (the Pareto front)."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for one in judged:
        speed, accuracy = one.speed, 100 * one.comparison.accuracy_after
        low = accuracy - (one.comparison.high - one.comparison.drop)
        high = accuracy + (one.comparison.drop - one.comparison.low)
        colour = "tab:green" if one is chosen else "tab:red" if one.refused else "tab:blue"
        axes.plot([speed, speed], [low, high], color=colour, alpha=0.3)
        axes.plot(speed, accuracy, "o", color=colour, markersize=9 if one is chosen else 6)
        axes.annotate(one.candidate.name, (speed, accuracy), xytext=(6, 4), textcoords="offset points", fontsize=8)
    front = pareto([(one.speed, 100 * one.comparison.accuracy_after) for one in judged])
    axes.plot(*zip(*front, strict=True), color="grey", linestyle="--", zorder=0, label="Pareto front")
    axes.set_xlabel("speed, times the original's (geometric mean at 1, 8 and 64 rows)")
    axes.set_ylabel("accuracy on the held-out rows, %")
    axes.set_title("green: chosen, red: refused by the gate; bars: 95 % of the drop", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png")


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in one coordinate without losing in the other, by the first coordinate."""
    front: list[tuple[float, float]] = []
    for speed, accuracy in sorted(set(points), reverse=True):
        if not front or accuracy > front[-1][1]:
            front.append((speed, accuracy))
    return front[::-1]
