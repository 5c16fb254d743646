"""Repositories of ensembles, and asking a server about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import TensorProto, helper
from support import models
from tritonclient.utils import InferenceServerException

SECONDS = 60
POLL = ("--model-control-mode", "poll", "--repository-poll-secs", "0.02")
EXPLICIT = ("--model-control-mode", "explicit")

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""By name: the config type without its prefix, and the dims."""


def ensemble(
    repository: Path,
    name: str,
    inputs: Tensors,
    outputs: Tensors,
    steps: Sequence[tuple[str, Mapping[str, str], Mapping[str, str]]],
    max_batch_size: int = 8,
) -> None:
    """Writes an ensemble, whole, by a rename."""
    lines = [f'platform: "ensemble"\nmax_batch_size: {max_batch_size}']
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor, (config_type, dims) in tensors.items():
            lines.append(f'{kind} {{ name: "{tensor}" data_type: TYPE_{config_type} dims: {list(dims)} }}')
    lines.append("ensemble_scheduling {")
    for model, taken, made in steps:
        maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in taken.items()]
        maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in made.items()]
        lines.append(f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}')
    lines.append("}")
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    aside = repository / name / ".config.pbtxt"
    aside.write_text("\n".join(lines))
    aside.rename(repository / name / "config.pbtxt")


def affine(factor: float, offset: float, width: int = 4) -> onnx.ModelProto:
    """x float [batch, width] -> y = factor x + offset."""
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["y"]),
    ]
    x, y = (models.tensor(name, TensorProto.FLOAT, ("batch", width)) for name in "xy")
    constants = {"factor": factor, "offset": offset}
    return models.model(
        nodes,
        [x],
        [y],
        [onnx.numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()],
    )


def to_float() -> onnx.ModelProto:
    """raw uint8 [batch, 4] -> values float [batch, 4], in 0 to 1."""
    nodes = [helper.make_node("Cast", ["raw"], ["wide"], to=TensorProto.FLOAT)]
    nodes.append(helper.make_node("Div", ["wide", "most"], ["values"]))
    raw = models.tensor("raw", TensorProto.UINT8, ("batch", 4))
    values = models.tensor("values", TensorProto.FLOAT, ("batch", 4))
    return models.model(nodes, [raw], [values], [onnx.numpy_helper.from_array(np.array(255, np.float32), "most")])


def write_models(repository: Path) -> None:
    """preprocess -> two parallel models -> combine, and around that another ensemble."""
    models.write(repository, "preprocess", to_float())
    models.write(repository, "left", affine(2, 1))
    models.write(repository, "right", affine(3, -1))
    models.write(repository, "combine", models.sum_and_difference())
    # Written before what it runs, in the alphabet as in time: the order of loading is found.
    ensemble(
        repository,
        "a_whole",
        {"pixels": ("UINT8", [4])},
        {"sum": ("FP32", [4]), "difference": ("FP32", [-1])},
        [
            ("combine", {"a": "l", "b": "r"}, {"sum": "sum", "difference": "difference"}),
            ("left", {"x": "values"}, {"y": "l"}),
            ("right", {"x": "values"}, {"y": "r"}),
            ("preprocess", {"raw": "pixels"}, {"values": "values"}),
        ],
    )
    ensemble(
        repository,
        "a_nested",
        {"image": ("UINT8", [4])},
        {"answer": ("FP32", [4]), "sum": ("FP32", [4])},
        [
            ("a_whole", {"pixels": "image"}, {"sum": "sum", "difference": "difference"}),
            ("left", {"x": "difference"}, {"y": "answer"}),
        ],
    )


def expected(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sum and the difference that `a_whole` answers, in numpy."""
    values = pixels.astype(np.float32) / np.float32(255)
    left, right = 2 * values + 1, 3 * values - 1
    return left + right, left - right


def pixels_of(rows: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 4), np.uint8)


def ask(
    client: triton.InferenceServerClient,
    name: str,
    tensor: str,
    array: np.ndarray,
    datatype: str = "UINT8",
    **options: object,
) -> triton.InferResult:
    given = triton.InferInput(tensor, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return client.infer(name, [given], client_timeout=SECONDS, **options)


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def index(client: triton.InferenceServerClient) -> dict[str, tuple[str, str]]:
    return {model.name: (model.state, model.reason) for model in client.get_model_repository_index().models}
