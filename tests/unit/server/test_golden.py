"""Golden samples at load: which runs are made of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from inferd_protocol import golden
from inferd_protocol.datatypes import BY_NAME
from inferd_protocol.golden import Golden, Tolerance
from inferd_protocol.tensors import Tensor, bf16_bits
from inferd_server.config import Device
from inferd_server.errors import LoadError, RuntimeFailure
from inferd_server.repository.golden import check_golden
from inferd_server.runtime.backend import RuntimeModel, Signature, TensorSpec
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from support import models

FP32 = BY_NAME["FP32"]
X = np.arange(15, dtype=np.float32).reshape(5, 3)


class Doubling:
    """y = 2 x, and says how many rows came."""

    provider = "TestProvider"

    def __init__(self, factor: float = 2.0, shape: tuple[str | int | None, ...] = ("batch", 3)) -> None:
        spec = {"datatype": FP32, "shape": shape}
        self.signature = Signature((TensorSpec("x", **spec),), (TensorSpec("y", **spec),), {})  # type: ignore[arg-type]
        self.factor = factor
        self.rows: list[int] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        (x,) = inputs
        self.rows.append(len(x))
        if self.factor == 0:
            raise RuntimeFailure("out of memory")
        return [(x * np.float32(self.factor)).astype(np.float32)]

    def close(self) -> None:
        raise AssertionError("whoever loads it closes it")


def write(folder: Path, x: np.ndarray = X, y: np.ndarray | None = None, absolute: float = 1e-3) -> None:
    answers = x * np.float32(2) if y is None else y
    golden.write(folder / "golden.npz", Golden({"x": x}, {"y": answers}, {"y": Tolerance(absolute, 0.0)}))


@pytest.mark.parametrize(
    ("max_batch_size", "runs"),
    [(64, [1] * 5 + [5]), (5, [1] * 5 + [5]), (2, [1] * 5 + [2, 2, 1]), (1, [1] * 5), (0, [5])],
)
def test_rows_run_alone_and_in_the_batches_that_are_served(
    tmp_path: Path, max_batch_size: int, runs: list[int]
) -> None:
    write(tmp_path)
    model = Doubling()
    assert check_golden(model, tmp_path, max_batch_size) == len(runs)
    assert model.rows == runs


def test_without_a_file_nothing_runs(tmp_path: Path) -> None:
    model = Doubling()
    assert check_golden(model, tmp_path, 8) == 0
    assert model.rows == []


def test_another_answer_is_refused_with_output_difference_and_tolerance(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(LoadError) as refusal:
        check_golden(Doubling(2.5), tmp_path, 8)
    # The first row alone is what differs first: by half of its largest value.
    assert str(refusal.value) == (
        "output 'y' differs by up to 1 from the answers of golden.npz, expected 0.001 + 0 * |answer| on TestProvider: "
        "publish model and samples of one export"
    )
    write(tmp_path, absolute=10.0)
    assert check_golden(Doubling(2.5), tmp_path, 8)


def test_an_answer_that_changes_with_the_batch_is_refused(tmp_path: Path) -> None:
    class Moody(Doubling):
        def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
            self.factor = 2.0 if len(inputs[0]) == 1 else 3.0
            return super().run(inputs)

    write(tmp_path)
    model = Moody()
    with pytest.raises(LoadError, match="differs by up to 14 from"):
        check_golden(model, tmp_path, 8)
    assert model.rows == [1, 1, 1, 1, 1, 5]


def test_an_answer_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(LoadError, match="differs in what is finite"):
        check_golden(Doubling(float("nan")), tmp_path, 8)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X.astype(np.float64), X, r"the input 'x' as float64 \[5, 3\], the model has FP32 \[-1, 3\]"),
        (X[:, :2], X, r"the input 'x' as float32 \[5, 2\], the model has FP32 \[-1, 3\]"),
        (X[0], X, r"the input 'x' as float32 \[3\], the model has"),
        (X, X.astype(np.int32), r"the output 'y' as int32 \[5, 3\], the model has"),
        (X, X[:4], r"has arrays of \[4, 5\] rows, expected 1 to 16, as many each"),
        (X[:0], X[:0], r"has arrays of \[0\] rows"),
        (np.zeros((17, 3), np.float32), np.zeros((17, 3), np.float32), r"has arrays of \[17\] rows"),
    ],
)
def test_samples_that_do_not_fit_are_refused(tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str) -> None:
    write(tmp_path, x, y)
    model = Doubling()
    with pytest.raises(LoadError, match=message):
        check_golden(model, tmp_path, 8)
    assert model.rows == []


def test_samples_of_other_tensors_are_refused(tmp_path: Path) -> None:
    golden.write(tmp_path / "golden.npz", Golden({"z": X}, {"y": X}, {"y": Tolerance(0, 0)}))
    with pytest.raises(LoadError, match=r"golden\.npz has the inputs \['z'\], the model has \['x'\]"):
        check_golden(Doubling(), tmp_path, 8)


def test_an_answer_of_another_shape_is_refused(tmp_path: Path) -> None:
    write(tmp_path, X, X[:, :2])
    model = Doubling()
    (output,) = model.signature.outputs
    model.signature = Signature(model.signature.inputs, (TensorSpec("y", FP32, ("batch", None)),), {})
    assert output.shape == ("batch", 3)
    with pytest.raises(
        LoadError, match=r"'y' has shape \[1, 3\] for the samples of golden\.npz, which expects \[1, 2\]"
    ):
        check_golden(model, tmp_path, 8)


def test_a_model_that_fails_on_its_samples_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(LoadError, match=r"does not run on the samples of golden\.npz: out of memory"):
        check_golden(Doubling(0.0), tmp_path, 8)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", json.dumps({"x": 1}).encode()])
def test_a_torn_file_is_refused_before_anything_runs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "golden.npz").write_bytes(content)
    model = Doubling()
    with pytest.raises(LoadError, match=r"golden\.npz holds no golden samples: it is no whole \.npz file: .*: publish"):
        check_golden(model, tmp_path, 8)
    assert model.rows == []


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    write(tmp_path)
    samples = np.load(tmp_path / "golden.npz")
    np.savez(tmp_path / "golden.npz", manifest=samples["manifest"], output_0=X, input_0=np.array([print], object))
    with pytest.raises(LoadError, match=r"'input_0\.npy' in it is object"):
        check_golden(Doubling(), tmp_path, 8)


def loaded(folder: Path, made: object) -> RuntimeModel:
    return OnnxRuntimeBackend(Device.CPU, 1).load(models.write(folder, "m", made))  # type: ignore[arg-type]


def test_real_models_give_their_golden_answers(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), np.uint8)
    samples = Golden(
        {"image": images}, {"probabilities": models.classify(images)}, {"probabilities": Tolerance(1e-5, 0)}
    )
    golden.write(tmp_path / "golden.npz", samples)
    assert check_golden(loaded(tmp_path, models.classifier()), tmp_path, 8) == 18


def test_bf16_is_compared_by_its_values(tmp_path: Path) -> None:
    model = loaded(tmp_path, models.identity(models.ELEMENT_TYPES["BF16"]))
    near = bf16_bits(X + np.float32(0.05))
    golden.write(tmp_path / "golden.npz", Golden({"x": bf16_bits(X)}, {"y": near}, {"y": Tolerance(0.1, 0)}))
    assert check_golden(model, tmp_path, 8)
    golden.write(tmp_path / "golden.npz", Golden({"x": bf16_bits(X)}, {"y": near}, {"y": Tolerance(0.01, 0)}))
    with pytest.raises(LoadError, match=r"differs by up to 0\.05"):
        check_golden(model, tmp_path, 8)
