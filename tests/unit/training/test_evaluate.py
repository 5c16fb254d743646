"""Figures against ones worked out by hand, and plots that are images."""

from pathlib import Path

import numpy as np
import pytest
from inferd_training import plots
from inferd_training.errors import ModelError
from inferd_training.evaluate import evaluate, table
from PIL import Image

LABELS = ("cat", "dog", "eel")
#                           true: cat            cat              dog              dog
ANSWERS = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3]], np.float32)
TRUTH = np.array([0, 0, 1, 1], np.uint8)


def test_figures() -> None:
    figures = evaluate(ANSWERS, TRUTH, LABELS)
    assert figures.accuracy == 0.75
    assert figures.confusion.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert figures.loss == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.5]).mean(), rel=1e-6)
    cat, dog, eel = figures.classes
    assert (cat.precision, cat.recall, cat.support) == (1.0, 0.5, 2)
    assert (dog.precision, dog.recall, dog.support) == (pytest.approx(2 / 3), 1.0, 2)
    # Never predicted, never there: undefined, not zero.
    assert (eel.precision, eel.recall, eel.support) == (None, None, 0)
    assert "accuracy 0.7500" in table(figures)
    assert "eel          -       -         0" in table(figures)


def test_a_certain_mistake_has_a_finite_loss() -> None:
    # Keras clips to 1e-7.
    figures = evaluate(np.array([[1.0, 0.0]], np.float32), np.array([1], np.uint8), ("a", "b"))
    assert figures.loss == pytest.approx(-np.log(1e-7))


def test_answers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\[4, 3\] probabilities, where \[4, 2\] were expected"):
        evaluate(ANSWERS, TRUTH, ("a", "b"))
    with pytest.raises(ModelError, match="not finite"):
        evaluate(np.full((4, 3), np.nan, np.float32), TRUTH, LABELS)


def test_plots_are_images(tmp_path: Path) -> None:
    plots.confusion_matrix(evaluate(ANSWERS, TRUTH, LABELS).confusion, LABELS, tmp_path / "confusion.png")
    history = {"loss": [2.0, 1.0], "val_loss": [2.1, 1.2], "accuracy": [0.1, 0.5], "val_accuracy": [0.1, 0.4]}
    plots.learning_curves(history, tmp_path / "curves.png")
    for name in ("confusion.png", "curves.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            # Something is drawn on it.
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 20) or ()) > 10
