"""Both clients' control calls: configuration, statistics, and the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from inferd_client import NO_RETRY, Duration, ModelIndex, errors
from inferd_client.model_statistics import parse_statistics
from inferd_client.repository import parse_config, parse_index
from inferd_protocol import grpc_service_pb2 as pb
from stub_server import StubServer, config, index, metadata, refuse

X = np.array([[1, 2]], np.float32)


def test_a_configuration(stub: StubServer, connect: Callable[..., Any]) -> None:
    answered = connect(stub.address).model_config("double", "stable")
    assert stub.requests == [("ModelConfig", pb.ModelConfigRequest(name="double", version="stable"))]
    assert (answered.name, answered.platform, answered.backend) == ("double", "onnxruntime_onnx", "onnxruntime")
    assert (answered.max_batch_size, answered.labels, answered.provider) == (64, {"stable": 3}, "CPUExecutionProvider")
    assert answered.fields["version_policy"] == {"specific": {"versions": ["2", "3"]}}


def test_a_configuration_without_labels_has_none(stub: StubServer, connect: Callable[..., Any]) -> None:
    def without(request: pb.ModelConfigRequest, context: grpc.ServicerContext) -> pb.ModelConfigResponse:
        response = config(request, context)
        response.config.parameters.clear()
        response.config.parameters["label:of_a_backend"].string_value = "red"
        return response

    stub.default["ModelConfig"] = without
    answered = connect(stub.address).model_config("double")
    assert (answered.labels, answered.provider) == ({}, "")


def test_statistics(stub: StubServer, connect: Callable[..., Any]) -> None:
    (version,) = connect(stub.address).statistics("double", "3")
    assert stub.requests == [("ModelStatistics", pb.ModelStatisticsRequest(name="double", version="3"))]
    assert (version.name, version.version, version.rows, version.executions) == ("double", "3", 8, 1)
    assert (version.success, version.fail) == (Duration(2, 226_000), Duration(1, 0))
    assert (version.queue, version.compute_input) == (Duration(2, 20_000), Duration(2, 2_000))
    assert (version.compute_infer, version.compute_output) == (Duration(2, 200_000), Duration(2, 4_000))
    assert [(batch.rows, batch.compute_infer.count) for batch in version.batches] == [(8, 1)]


def test_the_repository_index(stub: StubServer, connect: Callable[..., Any]) -> None:
    stub.default["RepositoryIndex"] = lambda request, context: index(
        ("a", "1", "READY", ""), ("b", "2", "UNAVAILABLE", "it is no model")
    )
    client = connect(stub.address)
    assert client.repository_index() == (
        ModelIndex("a", "1", "READY", ""),
        ModelIndex("b", "2", "UNAVAILABLE", "it is no model"),
    )
    client.repository_index(ready=True)
    assert [request.ready for _, request in stub.requests] == [False, True]


def test_loads_as_triton_takes_them(stub: StubServer, connect: Callable[..., Any]) -> None:
    client = connect(stub.address)
    assert client.load_model("m") is None
    client.load_model("m", config={"backend": "onnxruntime"}, files={"1/model.onnx": b"\x00\xff"})
    client.load_model("m", config='{"max_batch_size": 8}')
    plain, with_files, with_text = (request for _, request in stub.requests)
    assert plain == pb.RepositoryModelLoadRequest(model_name="m")
    assert set(with_files.parameters) == {"config", "file:1/model.onnx"}
    assert json.loads(with_files.parameters["config"].string_param) == {"backend": "onnxruntime"}
    assert with_files.parameters["file:1/model.onnx"].bytes_param == b"\x00\xff"
    assert with_text.parameters["config"].string_param == '{"max_batch_size": 8}'


def test_a_configuration_can_be_given_back(stub: StubServer, connect: Callable[..., Any]) -> None:
    client = connect(stub.address)
    client.load_model("m", config={**client.model_config("m").fields, "max_batch_size": 8})
    _, request = stub.requests[-1]
    sent = json.loads(request.parameters["config"].string_param)
    assert (sent["name"], sent["max_batch_size"], sent["parameters"]["label:stable"]) == ("m", 8, {"string_value": "3"})


def test_labels_are_parameters_of_a_load(stub: StubServer, connect: Callable[..., Any]) -> None:
    client = connect(stub.address)
    client.set_label("m", "stable", 3)
    client.set_label("m", "stable", 0)
    client.load_model("m", labels={"stable": 3, "canary": 4})
    sent = [
        {key: value.int64_param for key, value in request.parameters.items() if value.HasField("int64_param")}
        for _, request in stub.requests
    ]
    assert sent == [{"label:stable": 3}, {"label:stable": 0}, {"label:stable": 3, "label:canary": 4}]


def test_unloads(stub: StubServer, connect: Callable[..., Any]) -> None:
    client = connect(stub.address)
    assert client.unload_model("m") is None
    client.unload_model("m", unload_dependents=True)
    plain, all_of_it = (request for _, request in stub.requests)
    assert plain == pb.RepositoryModelUnloadRequest(model_name="m")
    assert all_of_it.parameters["unload_dependents"].bool_param


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"files": {"1/model.onnx": b""}}, "files of model 'm' need a config"),
        ({"config": {}, "files": {"file:1/model.onnx": b""}}, "a file is named <version>/<path>, for example"),
        ({"labels": {"stable": -1}}, "label 'stable' stands for a version of 1 or more, or 0 to remove it, got -1"),
        ({"labels": {"stable": 2**63}}, "or 0 to remove it, got 9223372036854775808"),
        ({"labels": {"": 1}}, "a label of model 'm' has no name"),
    ],
)
def test_a_load_that_cannot_be_is_not_sent(
    stub: StubServer, connect: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.InvalidInput, match=message):
        connect(stub.address).load_model("m", **options)
    assert stub.requests == []


def test_a_label_is_callable_wherever_a_version_is(stub: StubServer, connect: Callable[..., Any]) -> None:
    client = connect(stub.address)
    assert client.model_ready("double", "stable")
    client.model_metadata("double", "stable")
    client.statistics("double", "stable")
    for _ in range(2):  # of an unknown kind, then of a known one
        np.testing.assert_array_equal(client.infer("double", {"x": X}, version="stable")["y"], X * 2)
    assert len(list(client.infer_many("double", [{"x": X}], version="stable"))) == 1
    assert {getattr(request, "version", None) or request.model_version for _, request in stub.requests} == {"stable"}


@pytest.mark.parametrize("change", ["load_model", "unload_model", "set_label"])
def test_a_change_makes_the_client_forget_what_it_knew_of_the_model(
    stub: StubServer, connect: Callable[..., Any], change: str
) -> None:
    client = connect(stub.address)
    for model in ("double", "other"):
        client.infer(model, {"x": X}, version="stable")
    getattr(client, change)("double", *(("stable", 4) if change == "set_label" else ()))
    stub.default["ModelMetadata"] = lambda request, context: metadata(name=request.name, inputs={"z": ("FP32", [-1])})
    client.infer("other", {"x": X}, version="stable")
    with pytest.raises(errors.InvalidInput, match="has no input 'x': its inputs are 'z'"):
        client.infer("double", {"x": X}, version="stable")


def test_a_server_whose_control_is_off_says_so(stub: StubServer, connect: Callable[..., Any]) -> None:
    off = refuse(grpc.StatusCode.UNAVAILABLE, "model control is off", "control_off")
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        stub.default[method] = off
    client = connect(stub.address)
    for call in (client.load_model, client.unload_model):
        with pytest.raises(errors.ControlOff, match=r"^model control is off$"):
            call("m")
    assert len(stub.requests) == 2, "not tried again"


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("ModelConfig", lambda client: client.model_config("m")),
        ("ModelStatistics", lambda client: client.statistics()),
        ("RepositoryIndex", lambda client: client.repository_index()),
        ("RepositoryModelLoad", lambda client: client.load_model("m")),
        ("RepositoryModelUnload", lambda client: client.unload_model("m")),
    ],
)
def test_refusals_are_errors_of_the_tree(
    stub: StubServer, connect: Callable[..., Any], method: str, call: Callable[[Any], object]
) -> None:
    stub.script[method] = [
        refuse(grpc.StatusCode.UNIMPLEMENTED, "this server does not have it"),
        refuse(grpc.StatusCode.INTERNAL, "it broke"),
    ]
    client = connect(stub.address, retry=NO_RETRY)
    with pytest.raises(errors.Unimplemented, match=r"^this server does not have it$"):
        call(client)
    with pytest.raises(errors.ServerFault, match=r"^it broke$"):
        call(client)


@pytest.mark.parametrize("parse", [parse_config, parse_index, parse_statistics])
def test_bytes_that_are_no_answer_are_refused(parse: Callable[[bytes], object]) -> None:
    with pytest.raises(errors.BadResponse, match="is not one"):
        parse(b"\xff\xff\xff")
