"""The families for texts: what they are made of, what padding does to them, and the graphs that they become."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from inferd_training import fit
from inferd_training.data import datasets
from inferd_training.data.dataset import Dataset
from inferd_training.data.kinds import TEXT
from inferd_training.data.tokens import encode, encode_all
from inferd_training.export.convert import convert
from inferd_training.export.layers import nodes
from inferd_training.families.family import Family
from inferd_training.families.registry import FAMILIES
from tiny_data import write
from tiny_texts import tiny_texts

TEXTS = [family for family in FAMILIES.values() if family.kind is TEXT]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return datasets.load("text", write(tmp_path / "data", tiny_texts(train=96, validation=16)))


@pytest.fixture(scope="module")
def graphs() -> dict[str, onnx.GraphProto]:
    """The families' models of three classes in ONNX, by family."""
    return {family.name: convert(family.build(3), family.preprocessing).graph for family in TEXTS}


def operators(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in nodes(graph)]


def test_there_are_two() -> None:
    assert [family.name for family in TEXTS] == ["transformer", "lstm"]


def test_sizes() -> None:
    transformer, lstm = (family.build(8) for family in TEXTS)
    width, wide = 64, 256
    norm = 2 * width
    block = 2 * norm + 4 * width * (width + 1) + wide * (width + 1) + width * (wide + 1)
    stem = 257 * width + width * (5 * width + 1) + width * width + 128 * width
    assert transformer.count_params() == stem + 2 * block + norm + 8 * (width + 1)
    assert lstm.count_params() == 257 * 64 + 2 * 4 * 64 * (64 + 64 + 1) + 8 * (2 * 64 + 1)


@pytest.mark.parametrize("family", TEXTS, ids=lambda family: family.name)
def test_inputs_and_outputs(family: Family) -> None:
    model = family.build(3)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in model.inputs] == [("tokens", "int32", (None, 128))]
    assert model.outputs[0].shape == (None, 3)
    assert model.layers[-1].name == "probabilities"
    # A text without a byte, and one of nothing but bytes.
    answers = model.predict(encode_all(["", "x" * 200]), verbose=0)
    assert np.isfinite(answers).all()
    np.testing.assert_allclose(answers.sum(axis=1), 1, rtol=1e-5)


def test_the_transformer_looks_at_no_padding() -> None:
    # What the positions after the text's 18 bytes are like changes nothing; what those before are like does.
    model = FAMILIES["transformer"].build(3)
    tokens = encode("der Name der Datei")[np.newaxis]
    before = model.predict(tokens, verbose=0)
    positions: Any = model.get_layer("position")
    kernel, bias = positions.get_weights()
    noise = np.random.default_rng(0).normal(size=bias.shape)
    positions.set_weights([kernel, np.where(np.arange(len(bias))[:, np.newaxis] < 18, bias, bias + noise)])
    np.testing.assert_allclose(model.predict(tokens, verbose=0), before, rtol=1e-5)
    bias += noise
    positions.set_weights([kernel, bias])
    assert not np.allclose(model.predict(tokens, verbose=0), before, rtol=1e-3)


def test_the_transformer_knows_the_order() -> None:
    model = FAMILIES["transformer"].build(3)
    one, other = model.predict(encode_all(["abcdefgh", "hgfedcba"]), verbose=0)
    assert not np.allclose(one, other, rtol=1e-4)


def test_the_lstm_is_one_node_of_onnx(graphs: dict[str, onnx.GraphProto]) -> None:
    found = operators(graphs["lstm"])
    assert found.count("LSTM") == 1
    assert not {"Loop", "Scan", "If"} & set(found)


def test_the_transformer_is_plain_onnx(graphs: dict[str, onnx.GraphProto]) -> None:
    found = operators(graphs["transformer"])
    # One softmax a block, and the answer's.
    assert found.count("Softmax") == 3
    assert not {"Loop", "Scan", "If", "Erfc", "Einsum"} & set(found)


@pytest.mark.parametrize("family", ["transformer", "lstm"])
def test_the_batch_axis_is_free_and_the_length_is_not(family: str, graphs: dict[str, onnx.GraphProto]) -> None:
    (tokens,), (probabilities,) = graphs[family].input, graphs[family].output
    assert tokens.type.tensor_type.elem_type == onnx.TensorProto.INT32
    for end, extent in ((tokens, 128), (probabilities, 3)):
        batch, other = end.type.tensor_type.shape.dim
        assert (batch.dim_param, other.dim_value) == ("batch", extent)


@pytest.mark.slow
@pytest.mark.parametrize("family", TEXTS, ids=lambda family: family.name)
def test_two_runs_give_the_same_weights(family: Family, data: Dataset) -> None:
    chosen = fit.settings(family, epochs=1, batch_size=32)
    first, second = (fit.train(data, family, chosen) for _ in range(2))
    assert first.history == second.history
    assert all(map(np.array_equal, first.model.get_weights(), second.model.get_weights()))
