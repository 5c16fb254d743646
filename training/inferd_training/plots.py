"""Plots as PNG files, drawn without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray


def learning_curves(history: dict[str, list[float]], path: Path) -> None:
    """Loss (nats) and accuracy by epoch, on the training examples and on those to validate on."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = range(1, len(history["loss"]) + 1)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, history[name], marker="o", label="training")
        axes.plot(epochs, history[f"val_{name}"], marker="o", label="validation")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.set_xticks(list(epochs))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png")


def confusion_matrix(confusion: NDArray[np.int64], labels: tuple[str, ...], path: Path) -> None:
    """Counts by true class (rows) and predicted class (columns), int64 [classes, classes]; colours by row."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, column), count in np.ndenumerate(confusion):
        # White where the cell is dark.
        axes.text(
            column, row, str(count), ha="center", va="center", color="white" if shares[row, column] > 0.5 else "black"
        )
    figure.savefig(path, format="png")
