"""The server as a client sees it that nobody here wrote."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
from support import models
from support.limits import MAX_BATCH_SIZE, MAX_REQUEST_ROWS
from support.models import ELEMENT_TYPES
from tritonclient.utils import InferenceServerException

IMAGES = np.random.default_rng(7).integers(0, 256, (300, 4, 4, 1), np.uint8)

VALUES: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False, True]]),
    "FP16": np.array([[1.5, -0.0, 65504]], np.float16),
    "BF16": np.array([[1.5, -0.0, 3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[np.nan, np.inf, 1e-45]], np.float32),
    "FP64": np.array([[np.nan, -np.inf, 5e-324]]),
    "BYTES": np.array([["é".encode(), b"", b"x" * 1000]], object),
}


def value_of(datatype: str) -> np.ndarray:
    if datatype in VALUES:
        return VALUES[datatype]
    info = np.iinfo(triton_dtype(datatype))
    return np.array([[info.min, info.max, 1]], info.dtype)


def triton_dtype(datatype: str) -> np.dtype:
    return np.dtype(datatype.lower())


def tensor(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def images(array: np.ndarray = IMAGES[:2], name: str = "image", datatype: str = "UINT8") -> Sequence[triton.InferInput]:
    return [tensor(name, array, datatype)]


def refusal(client: triton.InferenceServerClient, code: str, *arguments: object, **options: object) -> str:
    """The message of a call that must fail with `code`; afterwards the server must still serve."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer(*arguments, **options)
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    assert client.infer("classifier", images()).as_numpy("probabilities").shape == (2, 3)
    return str(caught.value.message())


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("classifier")
    assert client.is_model_ready("classifier", "2")
    assert not client.is_model_ready("classifier", "1"), "the policy serves the latest version alone"
    assert not client.is_model_ready("corrupt")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    assert server.name == "inferd"
    assert set(server.extensions) == {
        "binary_tensor_data",
        "classification",
        "parameters",
        "model_configuration",
        "model_repository",
        "model_repository(unload_dependents)",
        "system_shared_memory",
        "logging",
        "schedule_policy",
        "statistics",
        "trace",
    }
    model = client.get_model_metadata("classifier")
    assert (model.name, list(model.versions), model.platform) == ("classifier", ["2"], "onnxruntime_onnx")
    assert [(each.name, each.datatype, list(each.shape)) for each in model.inputs] == [
        ("image", "UINT8", [-1, 4, 4, 1])
    ]
    assert [(each.name, each.datatype, list(each.shape)) for each in model.outputs] == [
        ("probabilities", "FP32", [-1, 3])
    ]
    assert list(client.get_model_metadata("fixed").inputs[0].shape) == [1, 3]


@pytest.mark.parametrize("datatype", ELEMENT_TYPES)
def test_every_datatype_comes_back_as_it_went(client: triton.InferenceServerClient, datatype: str) -> None:
    array = np.repeat(value_of(datatype), 2, axis=0)
    result = client.infer(f"identity_{datatype}", [tensor("x", array, datatype)])
    answer = result.as_numpy("y")
    if datatype == "BF16":
        # Releases of tritonclient differ in the dtype they give BF16: float32 holds the same values.
        answer, array = answer.astype(np.float32), array.astype(np.float32)
    assert answer.shape == array.shape
    if datatype == "BYTES":
        assert answer.tolist() == array.tolist()
    else:
        assert answer.dtype == array.dtype
        assert answer.tobytes() == array.tobytes()


@pytest.mark.parametrize("rows", [1, 7, MAX_BATCH_SIZE, MAX_BATCH_SIZE + 1, 300])
def test_any_number_of_rows_is_answered_in_order(client: triton.InferenceServerClient, rows: int) -> None:
    result = client.infer("classifier", images(IMAGES[:rows]), request_id="seven")
    np.testing.assert_allclose(result.as_numpy("probabilities"), models.classify(IMAGES[:rows]), rtol=1e-5)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("classifier", "2", "seven")


def test_zero_rows_are_answered_with_zero_rows(client: triton.InferenceServerClient) -> None:
    answer = client.infer("classifier", images(IMAGES[:0])).as_numpy("probabilities")
    assert answer.shape == (0, 3)
    assert answer.dtype == np.float32


def test_several_inputs_in_any_order_and_outputs_in_the_order_asked(client: triton.InferenceServerClient) -> None:
    a, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((2, 4), np.float32)
    inputs = [tensor("b", b, "FP32"), tensor("a", a, "FP32")]
    everything = client.infer("pair", inputs)
    assert [output.name for output in everything.get_response().outputs] == ["sum", "difference"]
    np.testing.assert_array_equal(everything.as_numpy("sum"), a + b)
    asked = client.infer("pair", inputs, outputs=[triton.InferRequestedOutput(name) for name in ("difference", "sum")])
    assert [output.name for output in asked.get_response().outputs] == ["difference", "sum"]
    np.testing.assert_array_equal(asked.as_numpy("difference"), a - b)
    one = client.infer("pair", inputs, outputs=[triton.InferRequestedOutput("difference")])
    assert one.as_numpy("sum") is None


def test_classification(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
    answer = client.infer("classifier", images(IMAGES[:3]), outputs=outputs).as_numpy("probabilities")
    expected = models.classify(IMAGES[:3])
    assert answer.shape == (3, 2)
    for row, best in zip(answer, expected.argsort(axis=1)[:, ::-1], strict=True):
        assert [int(item.split(b":")[1]) for item in row] == best[:2].tolist()
        assert row[0].split(b":")[2].decode() == models.CLASSES[best[0]]


def test_rows_of_different_lengths_are_answered_each_by_itself(client: triton.InferenceServerClient) -> None:
    def ask(length: int) -> float:
        array = np.ones((1, length), np.float32)
        return float(client.infer("ragged", [tensor("x", array, "FP32")]).as_numpy("total")[0])

    with ThreadPoolExecutor(16) as pool:
        lengths = [1 + number % 5 for number in range(100)]
        assert list(pool.map(ask, lengths)) == lengths


def test_a_model_whose_rows_depend_on_each_other_is_not_batched(client: triton.InferenceServerClient) -> None:
    def ask(number: int) -> None:
        array = np.array([[number, 0], [number + 2, 0]], np.float32)
        answer = client.infer("mean", [tensor("x", array, "FP32")]).as_numpy("centred")
        assert answer.tolist() == [[-1, 0], [1, 0]]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(100)))


def test_concurrent_callers_get_their_own_rows(client: triton.InferenceServerClient) -> None:
    def ask(number: int) -> None:
        mine = IMAGES[number : number + 1 + number % 3]
        answer = client.infer("classifier", images(mine)).as_numpy("probabilities")
        np.testing.assert_allclose(answer, models.classify(mine), rtol=1e-5)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(200)))


def test_nan_is_served_as_it_is(client: triton.InferenceServerClient) -> None:
    array = np.array([[np.nan, 1, 2, 3]], np.float32)
    answer = client.infer("pair", [tensor("a", array, "FP32"), tensor("b", array, "FP32")]).as_numpy("sum")
    assert np.isnan(answer[0, 0])
    assert answer[0, 1:].tolist() == [2, 4, 6]


@pytest.mark.parametrize(
    ("model", "version", "code", "text"),
    [
        ("nothing", "", "NOT_FOUND", "model 'nothing' is not known: expected one of"),
        ("classifier", "9", "NOT_FOUND", "has no version 9 that is served: expected 2"),
        ("classifier", "1", "NOT_FOUND", "has no version 1 that is served"),
        (
            "classifier",
            "two",
            "INVALID_ARGUMENT",
            "version 'two' of model 'classifier' is expected to be a whole number",
        ),
        ("corrupt", "", "UNAVAILABLE", "model 'corrupt' is not ready: version 1: model.onnx is no model"),
        ("corrupt", "1", "UNAVAILABLE", "model 'corrupt' version 1 is not ready"),
        ("empty", "", "UNAVAILABLE", "version 1 has no model.onnx: expected empty/1/model.onnx"),
    ],
)
def test_models_and_versions_that_cannot_be_called(
    client: triton.InferenceServerClient, model: str, version: str, code: str, text: str
) -> None:
    assert text in refusal(client, code, model, images(), model_version=version)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (images(IMAGES[:2, :3]), "input 'image' is expected to have shape [-1, 4, 4, 1], got [2, 3, 4, 1]"),
        (images(IMAGES[0]), "got [4, 4, 1]: axis 0 is the batch axis"),
        (images(IMAGES[:2].astype(np.float32), datatype="FP32"), "input 'image' is expected to be UINT8, got FP32"),
        (images(name="picture"), "input 'picture' is unknown: the model expects ['image']"),
        ([*images(), *images(name="more")], "input 'more' is unknown"),
        ([], "input 'image' is missing"),
    ],
)
def test_inputs_that_do_not_fit(
    client: triton.InferenceServerClient, inputs: Sequence[triton.InferInput], text: str
) -> None:
    assert text in refusal(client, "INVALID_ARGUMENT", "classifier", inputs)


def test_an_unknown_output(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("logits")]
    message = refusal(client, "INVALID_ARGUMENT", "classifier", images(), outputs=outputs)
    assert "output 'logits' is unknown: the model has ['probabilities']" in message


def test_a_batch_over_the_limit(client: triton.InferenceServerClient) -> None:
    array = np.zeros((MAX_REQUEST_ROWS + 1, 4, 4, 1), np.uint8)
    assert f"expected at most {MAX_REQUEST_ROWS}" in refusal(client, "INVALID_ARGUMENT", "classifier", images(array))


def test_a_batch_for_a_model_without_a_batch_axis(client: triton.InferenceServerClient) -> None:
    message = refusal(client, "INVALID_ARGUMENT", "fixed", [tensor("x", np.zeros((2, 3), np.float32), "FP32")])
    assert "axis 0 of 'x' is fixed at 1: export with a dynamic batch" in message


def test_a_message_over_the_limit(client: triton.InferenceServerClient) -> None:
    array = np.zeros((100_000, 4, 4, 1), np.uint8)
    refusal(client, "RESOURCE_EXHAUSTED", "classifier", images(array))


def test_an_input_that_only_the_graph_can_refuse(client: triton.InferenceServerClient) -> None:
    ids = np.full((1, 3), 99, np.int64)
    message = refusal(client, "INVALID_ARGUMENT", "embedding", [tensor("ids", ids, "INT64")])
    assert "the model refuses the inputs" in message


def test_a_priority_overtakes_what_waits(client: triton.InferenceServerClient) -> None:
    """Calls made at once arrive in any order, so the last of many is given a priority: it should be among the first."""
    order: Queue[str] = Queue()
    inputs = [tensor("x", np.zeros((MAX_BATCH_SIZE, 256), np.float32), "FP32")]

    def ask(name: str, priority: int) -> None:
        def done(result: triton.InferResult | None, error: InferenceServerException | None) -> None:
            order.put(name if error is None else str(error))

        client.async_infer("slower", inputs, done, priority=priority)

    for _ in range(20):
        ask("usual", 0)
    ask("second", 2)
    ask("first", 1)
    names = [order.get(timeout=60) for _ in range(22)]
    assert sorted(names) == ["first", "second", *["usual"] * 20]
    assert names.index("first") < 11
    assert names.index("second") < 11


def test_rpcs_that_are_not_built_say_so(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="CUDA") as caught:
        client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 1)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
