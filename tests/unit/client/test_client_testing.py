"""The fakes: real clients over a server that is a function."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from inferd_client import Overloaded, Retry, errors, parse_classes
from inferd_client.testing import FakeAsyncClient, FakeClient, FakeModel


def double(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    return {"y": inputs["x"] * 2.0, "z": np.array([b"a"] * len(inputs["x"]), object)}


MODEL = FakeModel(
    inputs={"x": ("FP32", (-1, 2))},
    outputs={"y": ("FP32", (-1, 2)), "z": ("BYTES", (-1,))},
    answer=double,
    labels={"y": ["no", "yes"]},
)
X = np.array([[1, 3], [4, 2]], np.float32)


def test_it_answers_from_the_function() -> None:
    with FakeClient({"m": MODEL}) as client:
        result = client.infer("m", {"x": X}, request_id="7", parameters={"priority": 1, "p": 0.5})
    np.testing.assert_array_equal(result["y"], X * 2)
    assert result["y"].dtype == np.float32
    assert result["z"].tolist() == [b"a", b"a"]
    (request,) = client.requests
    assert (request.model, request.version, request.id) == ("m", "", "7")
    assert request.parameters == {"priority": 1, "p": 0.5}
    np.testing.assert_array_equal(request.inputs["x"], X)


def test_it_is_ready_and_describes_itself() -> None:
    with FakeClient({"m": MODEL}) as client:
        assert client.server_live()
        assert client.server_ready()
        assert client.model_ready("m")
        assert client.model_ready("m", "1")
        assert not client.model_ready("m", "2")
        assert not client.model_ready("n")
        assert client.server_metadata().name == "fake"
        assert [tensor.name for tensor in client.model_metadata("m").outputs] == ["y", "z"]


def test_it_is_as_strict_as_a_server() -> None:
    two = FakeModel({"a": ("FP32", (-1,)), "b": ("FP32", (-1,))}, {"y": ("FP32", (-1,))}, lambda inputs: inputs)
    with FakeClient({"m": MODEL, "two": two}) as client:
        with pytest.raises(errors.ModelNotFound, match="no model 'n'"):
            client.infer("n", {"x": X})
        with pytest.raises(errors.ModelNotFound, match="of version 9"):
            client.infer("m", {"x": X}, version="9")
        with pytest.raises(errors.InvalidInput, match="float64"):
            client.infer("m", {"x": X.astype(float)})
        with pytest.raises(errors.InvalidInput, match="no output 'w'"):
            client.infer("m", {"x": X}, outputs=["w"])
        with pytest.raises(errors.InvalidInput, match=r"misses the inputs \['b'\]"):
            client.infer("two", {"a": np.ones(1, np.float32)})


def test_it_classifies() -> None:
    with FakeClient({"m": MODEL}) as client:
        result = client.infer("m", {"x": X}, outputs=["y"], classification={"y": 1})
    assert [(best.value, best.index, best.label) for (best,) in parse_classes(result["y"])] == [
        (6, 1, "yes"),
        (8, 0, "no"),
    ]


def test_it_splits_and_pipelines() -> None:
    with FakeClient({"m": MODEL}, max_message_bytes=60) as client:
        rows = np.arange(20, dtype=np.float32).reshape(10, 2)
        np.testing.assert_array_equal(client.infer("m", {"x": rows})["y"], rows * 2)
        assert len(client.requests) > 1
    with FakeClient({"m": MODEL}) as client:
        results = client.infer_many("m", [{"x": X}, {"x": X * 2}], concurrency=3)
        assert [result["y"][0, 0] for result in results] == [2, 4]


def test_a_function_that_raises_is_a_server_that_refuses() -> None:
    answers = iter([Overloaded("full"), Overloaded("full"), None])

    def sometimes(inputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
        error = next(answers)
        if error:
            raise error
        return double(inputs)

    model = FakeModel(MODEL.inputs, MODEL.outputs, sometimes)
    with FakeClient({"m": model}) as client, pytest.raises(Overloaded):
        client.infer("m", {"x": X})
    with FakeClient({"m": model}, retry=Retry(initial=0, maximum=0, overloaded=True)) as client:
        assert next(client.infer_many("m", [{"x": X}]))["y"].shape == (2, 2)


def test_bf16_goes_in_and_out_as_float32() -> None:
    model = FakeModel({"x": ("BF16", (-1,))}, {"x": ("BF16", (-1,))}, lambda inputs: inputs)
    with FakeClient({"m": model}) as client:
        result = client.infer("m", {"x": np.array([1.0, 1.001, -2.5], np.float32)})
    np.testing.assert_array_equal(result["x"], np.array([1, 1, -2.5], np.float32))


def test_closed_is_closed() -> None:
    client = FakeClient({})
    client.close()
    with pytest.raises(errors.ClientClosed):
        client.server_live()


def test_the_awaiting_one() -> None:
    async def main() -> None:
        async with FakeAsyncClient({"m": MODEL}) as client:
            np.testing.assert_array_equal((await client.infer("m", {"x": X}))["y"], X * 2)
            assert [r["y"].shape async for r in client.infer_many("m", [{"x": X}] * 3)] == [(2, 2)] * 3
        assert len(client.requests) == 4
        with pytest.raises(errors.ClientClosed):
            await client.server_live()

    asyncio.run(main())
