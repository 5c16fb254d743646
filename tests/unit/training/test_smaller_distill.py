"""Distillation: its loss by hand, a student that learns, the same student alone, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from inferd_training import fit
from inferd_training.errors import ModelError
from inferd_training.families.registry import FAMILIES
from inferd_training.smaller.distill import Distillation, alone, distil, distillation_loss, student_of
from keras import layers

CHOSEN = fit.settings(FAMILIES["cnn"], epochs=8, batch_size=16, learning_rate=1e-2)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def targets(truth: np.ndarray, teacher: np.ndarray) -> tf.Tensor:
    return tf.constant(np.concatenate([truth[:, None], teacher], axis=1).astype(np.float32))


def test_the_loss_is_that_of_the_logits() -> None:
    """From probabilities alone, the softened answers are those that the logits would give."""
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(0, 2, (5, 4)), generator.normal(0, 2, (5, 4))
    truth = np.array([0, 1, 2, 3, 0])
    temperature, alpha = 3.0, 0.7
    soft_teacher, soft_student = softmax(teacher / temperature), softmax(student / temperature)
    divergence = (soft_teacher * np.log(soft_teacher / soft_student)).sum(axis=1)
    hard = -np.log(softmax(student)[np.arange(5), truth])
    loss = distillation_loss(Distillation(temperature, alpha))(
        targets(truth, softmax(teacher)), tf.constant(softmax(student).astype(np.float32))
    )
    assert loss.numpy() == pytest.approx(alpha * temperature**2 * divergence + (1 - alpha) * hard, rel=1e-4)


def test_a_certain_teacher_and_a_student_who_agrees() -> None:
    certain = np.array([[1.0, 0.0, 0.0]], np.float32)
    given = targets(np.array([0]), certain)
    for answers in (certain, np.array([[0.0, 0.0, 1.0]], np.float32)):
        variable = tf.Variable(answers)
        with tf.GradientTape() as tape:
            loss = distillation_loss(Distillation(4.0, 0.5))(given, variable)
        assert np.isfinite(loss.numpy()).all()
        assert np.isfinite(tape.gradient(loss, variable).numpy()).all()
    agreed = distillation_loss(Distillation(4.0, 1.0))(given, tf.constant(certain))
    assert agreed.numpy() == pytest.approx([0.0], abs=1e-6)


def teacher() -> keras.Model:
    value = keras.Input((8,), name="features")
    hidden = layers.Dense(16, activation="relu", name="first")(value)
    hidden = layers.Dense(12, activation="relu", name="second")(hidden)
    return keras.Model(value, layers.Dense(3, activation="softmax", name="probabilities")(hidden))


def blobs(count: int, seed: int, classes: int = 3) -> fit.Examples:
    generator = np.random.default_rng(seed)
    truth = (np.arange(count) % classes).astype(np.uint8)
    inputs = generator.normal(0, 0.4, (count, 8)).astype(np.float32)
    inputs[:, :2] += np.array([[2, 0], [-2, 0], [0, 2], [0, -2]], np.float32)[truth]
    return inputs, truth


def test_a_student_is_narrower_and_otherwise_the_same() -> None:
    student = student_of(teacher(), 0.25)
    assert [layer.units for layer in student.layers[1:]] == [4, 3, 3]
    assert [layer.name for layer in student.layers] == ["features", "first", "second", "probabilities"]
    assert student_of(teacher(), 0.01).layers[1].units == 1


def test_a_student_learns_from_the_teacher_alone() -> None:
    """Its true classes are all wrong, and count for nothing: whatever it knows it has from its teacher."""
    fitted, validation, rows = blobs(240, 0), blobs(60, 1), blobs(90, 2)
    answers = tuple(np.eye(3, dtype=np.float32)[truth] * 0.9 + 0.1 / 3 for _, truth in (fitted, validation))
    assert len(answers) == 2
    lies = (fitted[0], ((fitted[1] + 1) % 3).astype(np.uint8))
    trained = distil(lambda: student_of(teacher(), 0.5), lies, validation, answers, CHOSEN, Distillation(2.0, 1.0))
    predicted = trained.model.predict(rows[0], verbose=0).argmax(axis=1)
    assert (predicted == rows[1]).mean() > 0.95
    assert set(trained.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    # Against its true classes, which were lies.
    assert trained.history["accuracy"][-1] < 0.1
    assert trained.history["val_accuracy"][-1] > 0.9


def test_without_its_teacher_it_starts_from_the_same_weights() -> None:
    fitted, validation = blobs(48, 0), blobs(12, 1)
    answers = tuple(np.full((count, 3), 1 / 3, np.float32) for count in (48, 12))
    assert len(answers) == 2

    def build() -> keras.Model:
        return student_of(teacher(), 0.5)

    # A teacher who counts for nothing is no teacher.
    ignored = distil(build, fitted, validation, answers, CHOSEN, Distillation(4.0, 0.0))
    without = alone(build, fitted, validation, CHOSEN)
    for one, other in zip(ignored.model.get_weights(), without.model.get_weights(), strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert ignored.history["val_accuracy"] == pytest.approx(without.history["val_accuracy"])


@pytest.mark.parametrize(
    ("distillation", "message"),
    [
        (Distillation(0.0, 0.5), "temperature 0.0"),
        (Distillation(float("inf"), 0.5), "temperature inf"),
        (Distillation(4.0, 1.5), "weight 1.5 of the teacher"),
        (Distillation(4.0, float("nan")), "weight nan of the teacher"),
    ],
)
def test_settings_out_of_range_are_refused(distillation: Distillation, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        distillation.check()


@pytest.mark.parametrize("width", [0.0, 1.0, -1.0, float("nan")])
def test_widths_out_of_range_are_refused(width: float) -> None:
    with pytest.raises(ModelError, match="must lie between 0 and 1"):
        student_of(teacher(), width)


def test_a_width_that_changes_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"can be 0.99 times as wide in multiples of 16 \('probabilities': its"):
        student_of(teacher(), 0.99)


def test_a_student_of_other_classes_is_refused() -> None:
    answers = tuple(np.full((count, 4), 0.25, np.float32) for count in (48, 12))
    assert len(answers) == 2
    with pytest.raises(ModelError, match="the student tells 3 classes apart and its teacher 4"):
        distil(lambda: student_of(teacher(), 0.5), blobs(48, 0), blobs(12, 1), answers, CHOSEN, Distillation(4.0, 0.5))
