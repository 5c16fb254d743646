"""Rows of cells as lines of text whose columns line up."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"
"""The cell of what is not known."""


def lines(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()) -> list[str]:
    """The header and the rows, their columns as wide as their widest cells. The columns `numbers` end on the right.

    A cell stays on its line, whatever a server put into it; an empty one becomes a dash.
    """
    table = [list(header), *([" ".join(cell.split()) or NOTHING for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ).rstrip()
        for row in table
    ]


def number(value: float | None) -> str:
    """A measured number with three digits or more, as people compare them."""
    if value is None:
        return NOTHING
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
