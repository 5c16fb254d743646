"""Validation, classification, the codec and the table of status codes: pure functions of the request."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import numpy as np
import pytest
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.datatypes import BY_NAME
from inferd_protocol.reasons import REASON_KEY
from inferd_server import errors
from inferd_server.core.classification import classify
from inferd_server.core.validation import arrange, select
from inferd_server.errors import InvalidRequest, MalformedMessage, NotBuilt, ServerError
from inferd_server.frontend.codec import decode_message, encode_answer
from inferd_server.frontend.status import status_of
from inferd_server.repository.model_config import ModelConfig
from inferd_server.request import AnswerForm, RequestedOutput, TensorForm
from inferd_server.runtime.backend import Dim, Signature, TensorSpec

FP32, INT64 = BY_NAME["FP32"], BY_NAME["INT64"]


def signature(**inputs: tuple[Dim, ...]) -> Signature:
    specs = tuple(TensorSpec(name, FP32, shape) for name, shape in inputs.items())
    return Signature(specs, (TensorSpec("y", FP32, ("batch", 2)), TensorSpec("z", FP32, ("batch",))), {})


def config(max_batch_size: int = 8, max_request_rows: int = 100) -> ModelConfig:
    return ModelConfig(max_batch_size, max_request_rows, 10, 1000, 0, 1)


def named(name: str, *shape: int, dtype: str = "FP32") -> TensorForm:
    return TensorForm(name, BY_NAME[dtype], shape)


TWO = signature(a=("batch", 3), b=("batch", "length"))


def test_inputs_are_put_into_the_models_order() -> None:
    arranged = arrange(TWO, config(), [named("b", 2, 7), named("a", 2, 3)])
    assert arranged.order == (1, 0)
    assert arranged.rows == 2
    assert arranged.layout.row_shapes == ((3,), (7,))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([named("a", 2, 3)], r"input 'b' is missing: the model expects \['a', 'b'\], got \['a'\]"),
        ([named("a", 2, 3), named("b", 2, 1), named("c", 1)], "input 'c' is unknown"),
        ([named("a", 2, 3), named("a", 2, 3)], "input 'a' comes twice"),
        ([named("a", 2, 3, dtype="INT8"), named("b", 2, 1)], "input 'a' is expected to be FP32, got INT8"),
        ([named("a", 2, 4), named("b", 2, 1)], r"'a' is expected to have shape \[-1, 3\], got \[2, 4\]"),
        ([named("a", 3), named("b", 2, 1)], r"got \[3\]: axis 0 is the batch axis"),
        ([named("a", 2, 3), named("b", 1, 1)], "input 'b' has 1 rows, input 'a' has 2"),
        ([named("a", 101, 3), named("b", 101, 1)], "101 rows, expected at most 100"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(inputs: Sequence[TensorForm], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        arrange(TWO, config(), inputs)


def test_a_fixed_batch_axis_is_explained() -> None:
    with pytest.raises(InvalidRequest, match=r"\[1, 3\], got \[2, 3\]: axis 0 of 'x' is fixed at 1: export"):
        arrange(signature(x=(1, 3)), config(max_batch_size=0), [named("x", 2, 3)])


def test_outputs_are_selected_in_the_order_asked() -> None:
    assert [place.place for place in select(TWO, [])] == [0, 1]
    assert select(TWO, [RequestedOutput("z"), RequestedOutput("y", 3)]) == ((1, 0), (0, 3))
    with pytest.raises(InvalidRequest, match=r"output 'x' is unknown: the model has \['y', 'z'\]"):
        select(TWO, [RequestedOutput("x")])
    with pytest.raises(InvalidRequest, match="asked for twice"):
        select(TWO, [RequestedOutput("y"), RequestedOutput("y")])


def test_classification_is_sorted_labelled_and_stable() -> None:
    array = np.array([[0.25, 0.5, 0.25], [1.0, 1.0, 3.0]], np.float32)
    answer = classify("y", FP32, array, 2, ["a", "b"], batched=True)
    assert answer.tolist() == [[b"0.5:1:b", b"0.25:0:a"], [b"3.0:2", b"1.0:0:a"]]
    assert classify("y", FP32, array[0], 9, [], batched=False).tolist() == [b"0.5:1", b"0.25:0", b"0.25:2"]


def test_classification_of_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="BYTES: classification expects numbers"):
        classify("y", BY_NAME["BYTES"], np.array([b"x"], object), 1, [], batched=True)


def message(**changes: object) -> bytes:
    """A valid request of one input `x`, FP32 [1, 2], with changes."""
    request = pb.ModelInferRequest(
        model_name="m",
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 2])],
        raw_input_contents=[np.array([1, 2], np.float32).tobytes()],
    )
    for field, value in changes.items():
        if field in ("datatype", "shape", "contents"):
            target, field = request.inputs[0], field
        else:
            target = request
        target.ClearField(field)  # type: ignore[arg-type]
        addition = type(target)(**{field: value})
        target.MergeFrom(addition)  # type: ignore[arg-type]
    return request.SerializeToString()


def test_a_request_is_decoded_without_copies_of_its_tensors() -> None:
    request = decode_message(message(id="7"))
    assert (request.form.model_name, request.id, request.form.timeout_us) == ("m", "7", 0)
    assert request.form.inputs == (named("x", 1, 2),)
    content = request.contents[0]
    assert isinstance(content, memoryview)
    assert content.cast("f").tolist() == [1, 2]


def parameter(**value: object) -> pb.InferParameter:
    return pb.InferParameter(**value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {"raw_input_contents": []},
            InvalidRequest,
            "'x' .* expects 2 elements in contents.fp32_contents, got 0",
        ),
        ({"raw_input_contents": [b"1234"]}, InvalidRequest, "'x' .* expects 8 bytes, got 4"),
        ({"raw_input_contents": [b"12345678", b""]}, InvalidRequest, "to hold 1 buffers, one an input, got 2"),
        ({"contents": pb.InferTensorContents(fp32_contents=[1, 2])}, InvalidRequest, "'x' has typed contents beside"),
        ({"datatype": "FP31"}, InvalidRequest, "'x' has datatype 'FP31': expected one of BOOL"),
        ({"shape": [-1, 2]}, InvalidRequest, r"'x' has shape \[-1, 2\]"),
        (
            {"parameters": {"timeout": parameter(string_param="1")}},
            InvalidRequest,
            "is expected to be an int64",
        ),
        ({"parameters": {"timeout": parameter(int64_param=-1)}}, InvalidRequest, "0 or more, got -1"),
        ({"parameters": {"sequence_id": parameter(int64_param=1)}}, NotBuilt, "'sequence_id' asks for sequences"),
        ({"parameters": {"priority": parameter(int64_param=-1)}}, InvalidRequest, "1, the highest, .* got -1"),
        ({"parameters": {"priority": parameter(uint64_param=2**32)}}, InvalidRequest, "to 4294967295, .* 4294967296"),
        ({"parameters": {"priority": parameter(bool_param=True)}}, InvalidRequest, "got bool_param"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(
    changes: dict[str, object], error: type[ServerError], text: str
) -> None:
    with pytest.raises(error, match=text):
        decode_message(message(**changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"contents": pb.InferTensorContents(int_contents=[1, 2])},
            "in contents.fp32_contents, got contents.int",
        ),
        ({"datatype": "FP16", "contents": pb.InferTensorContents(fp32_contents=[1, 2])}, "no typed contents"),
    ],
)
def test_typed_contents_of_another_kind_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        decode_message(message(raw_input_contents=[], **changes))


@pytest.mark.parametrize("junk", [b"\xff", b"\x0a\xff\xff", message()[:-1]])
def test_bytes_that_are_no_message_are_named_so(junk: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_message(junk)


def test_unknown_parameters_are_the_callers_own() -> None:
    assert decode_message(message(parameters={"mine": parameter(bool_param=True)})).form.timeout_us == 0
    assert decode_message(message(parameters={"timeout": parameter(int64_param=5)})).form.timeout_us == 5


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1])
def test_a_priority_is_an_integer_of_either_kind(value: int) -> None:
    for made in (parameter(uint64_param=value), parameter(int64_param=value)):
        assert decode_message(message(parameters={"priority": made})).form.priority == value
    assert decode_message(message()).form.priority == 0


@pytest.mark.parametrize("request_id", ["", "id", "é" * 100])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_answers_are_raw_and_the_bytes_that_protobuf_writes(request_id: str, rows: int) -> None:
    y, z = np.ones((rows, 2), np.float32), np.arange(rows, dtype=np.int64)
    form = AnswerForm("m", "3", (("y", FP32), ("z", INT64)))
    expected = pb.ModelInferResponse(
        model_name="m",
        model_version="3",
        id=request_id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name="y", datatype="FP32", shape=[rows, 2]),
            pb.ModelInferResponse.InferOutputTensor(name="z", datatype="INT64", shape=[rows]),
        ],
        raw_output_contents=[y.tobytes(), z.tobytes()],
    )
    assert encode_answer(form, request_id, [y, z]) == expected.SerializeToString()


def test_an_answer_of_text_is_encoded_too() -> None:
    form = AnswerForm("m", "3", (("y", BY_NAME["BYTES"]), ("z", FP32)))
    text, number = np.array([b"ab"], object), np.array([1.0], np.float32)
    response = pb.ModelInferResponse.FromString(encode_answer(form, "7", [text, number]))
    assert list(response.raw_output_contents) == [b"\x02\x00\x00\x00ab", number.tobytes()]


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.InvalidRequest("x"), grpc.StatusCode.INVALID_ARGUMENT, None),
        (errors.MalformedMessage("x"), grpc.StatusCode.INTERNAL, None),
        (errors.ModelNotFound("x"), grpc.StatusCode.NOT_FOUND, None),
        (errors.ModelNotReady("m", 1, "x"), grpc.StatusCode.UNAVAILABLE, "loading"),
        (errors.QueueFull("x"), grpc.StatusCode.UNAVAILABLE, "queue_full"),
        (errors.QueueTimeout(), grpc.StatusCode.UNAVAILABLE, "queue_timeout"),
        (errors.Draining(), grpc.StatusCode.UNAVAILABLE, "draining"),
        (errors.DeadlineExceeded(), grpc.StatusCode.DEADLINE_EXCEEDED, None),
        (errors.NotBuilt("x"), grpc.StatusCode.UNIMPLEMENTED, None),
        (errors.RuntimeFailure("x"), grpc.StatusCode.INTERNAL, None),
    ],
)
def test_every_error_has_its_code_and_its_reason(error: ServerError, code: grpc.StatusCode, reason: str | None) -> None:
    status = status_of(error)
    assert status.code is code
    assert status.message == str(error)
    assert dict(status.metadata) == ({} if reason is None else {REASON_KEY: reason})


def test_a_defect_is_internal_and_keeps_its_details_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    status = status_of(ZeroDivisionError("secret"))
    assert status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in status.message
    assert "secret" in caplog.text
