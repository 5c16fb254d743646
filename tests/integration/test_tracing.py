"""Traces, as a real collector gets them from a real server."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from support import models
from support.collector import Collector, collector
from support.server import serve
from tritonclient.utils import InferenceServerException

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "z" data_type: TYPE_FP32 dims: [ 3 ] }
ensemble_scheduling {
  step { model_name: "first" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "t" } }
  step { model_name: "second" model_version: -1 input_map { key: "x" value: "t" } output_map { key: "y" value: "z" } }
}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for name in ("first", "second"):
        models.write(folder, name, models.identity(models.ELEMENT_TYPES["FP32"]))
    models.write(folder, "classifier", models.classifier())
    models.write(folder, "slow", models.slow(multiplications=1000))
    (folder / "both" / "1").mkdir(parents=True)
    (folder / "both" / "config.pbtxt").write_text(ENSEMBLE)
    return folder


@pytest.fixture
def collecting() -> Iterator[Collector]:
    with collector() as running:
        yield running


def inputs(rows: int = 2, name: str = "x") -> list[triton.InferInput]:
    tensor = triton.InferInput(name, [rows, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, 3), np.float32))
    return [tensor]


def flags(transport: str, traces: Collector, rate: int = 0) -> list[str]:
    return ["--transport", transport, "--trace-endpoint", traces.endpoint, "--trace-rate", str(rate)]


def test_a_callers_trace_goes_on_through_the_queue_and_the_run(
    repository: Path, transport: str, collecting: Collector
) -> None:
    began_ns = time.time_ns()
    with serve(repository, *flags(transport, collecting)) as server, triton.InferenceServerClient(server.address) as c:
        c.infer("first", inputs(), request_id="seven", headers=SAMPLED)
        c.infer("first", inputs(), headers=NOT_SAMPLED)
        c.infer("first", inputs())
        c.infer("first", inputs(), headers={"traceparent": "nonsense"})
    ended_ns = time.time_ns()
    assert len(collecting.spans) == 4, "of one request"
    (call,) = collecting.calls()
    assert (call.trace, call.parent) == (TRACE, CALLER)
    assert call.name == "inference.GRPCInferenceService/ModelInfer"
    assert call.kind == 2, "a server's"
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "inferd.request.id": "seven",
    }
    assert call.resource["service.name"] == "inferd"
    (model,) = collecting.below(call)
    assert model.name == "first"
    assert model.attributes == {"inferd.model.name": "first", "inferd.model.version": "1", "inferd.rows": 2}
    waited, computed = collecting.below(model)
    assert (waited.name, computed.name) == ("queue", "compute")
    assert began_ns <= call.start_ns == model.start_ns == waited.start_ns
    assert waited.end_ns == computed.start_ns
    assert computed.end_ns == model.end_ns <= ended_ns
    (gathered, gathered_ns), (run, run_ns) = computed.events
    assert (gathered, run) == ("input gathered", "run")
    assert computed.start_ns <= gathered_ns < run_ns <= computed.end_ns
    assert not any(span.failed for span in collecting.spans)


def test_one_request_in_so_many_begins_a_trace(repository: Path, transport: str, collecting: Collector) -> None:
    arguments = flags(transport, collecting, rate=3)
    with serve(repository, *arguments) as server, triton.InferenceServerClient(server.address) as client:
        for _ in range(10):
            client.infer("first", inputs())
    calls = collecting.calls()
    assert len(calls) == 3
    assert len({call.trace for call in calls}) == 3
    assert {call.parent for call in calls} == {""}


def test_the_steps_of_an_ensemble_are_in_its_trace(repository: Path, transport: str, collecting: Collector) -> None:
    arguments = flags(transport, collecting)
    with serve(repository, *arguments) as server, triton.InferenceServerClient(server.address) as client:
        client.infer("both", inputs(), headers=SAMPLED)
    (call,) = collecting.calls()
    spans = {span.name: span for span in collecting.below(call)}
    assert set(spans) == {"both", "first", "second"}
    whole, first, second = (spans[name] for name in ("both", "first", "second"))
    assert whole.start_ns <= first.start_ns
    assert first.start_ns <= second.start_ns
    assert second.attributes["inferd.model.name"] == "second"


def test_failures_say_what_went_wrong(repository: Path, transport: str, collecting: Collector) -> None:
    arguments = flags(transport, collecting)
    with serve(repository, *arguments) as server, triton.InferenceServerClient(server.address) as client:
        for name, tensors in (("nothing", inputs()), ("first", inputs(name="y"))):
            with pytest.raises(InferenceServerException):
                client.infer(name, tensors, headers=SAMPLED)
    unknown, wrong = collecting.calls()
    assert len(collecting.spans) == 2
    assert unknown.failed
    assert unknown.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert unknown.attributes["error.type"] == "not_found"
    assert "model 'nothing' is not known" in unknown.message
    assert wrong.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert "'y'" in wrong.message


def test_a_caller_who_leaves_ends_the_trace(repository: Path, transport: str, collecting: Collector) -> None:
    arguments = flags(transport, collecting)
    with serve(repository, *arguments) as server, triton.InferenceServerClient(server.address) as client:
        tensor = triton.InferInput("x", [640, 256], "FP32")
        tensor.set_data_from_numpy(np.ones((640, 256), np.float32))
        with pytest.raises(InferenceServerException, match="Deadline"):
            client.infer("slow", [tensor], headers=SAMPLED, client_timeout=0.05)
    (call,) = collecting.calls()
    assert call.failed
    assert call.attributes["rpc.response.status_code"] in ("CANCELLED", "DEADLINE_EXCEEDED")


def test_each_request_of_a_stream_is_a_trace_of_its_own_under_the_streams_caller(
    repository: Path, transport: str, collecting: Collector
) -> None:
    answers: queue.Queue[object] = queue.Queue()
    arguments = flags(transport, collecting)
    with serve(repository, *arguments) as server, triton.InferenceServerClient(server.address) as client:
        client.start_stream(lambda result, error: answers.put(error or result), headers=SAMPLED)
        for number in range(3):
            client.async_stream_infer("first", inputs(), request_id=str(number))
        assert all(isinstance(answers.get(timeout=30), triton.InferResult) for _ in range(3))
        client.stop_stream()
    calls = collecting.calls()
    assert [call.attributes["inferd.request.id"] for call in calls] == ["0", "1", "2"]
    assert {(call.trace, call.parent) for call in calls} == {(TRACE, CALLER)}


def test_trace_settings_decide_while_the_server_runs(repository: Path, transport: str, collecting: Collector) -> None:
    arguments = flags(transport, collecting)
    with serve(repository, *arguments) as server, triton.InferenceServerClient(server.address) as client:

        def ask(model: str, request_id: str) -> None:
            client.infer(model, inputs(), request_id=request_id, headers=SAMPLED)

        assert list(client.get_trace_settings().settings["trace_level"].value) == ["TIMESTAMPS"]
        ask("first", "as it was started")
        client.update_trace_settings("first", {"trace_level": "OFF"})
        ask("first", "off for this model")
        ask("second", "and for no other")
        client.update_trace_settings("first", {"trace_level": None})
        ask("first", "as the server again")
        client.update_trace_settings(None, {"trace_rate": "1", "trace_count": "2"})
        for number in range(4):
            client.infer("first", inputs(), request_id=f"of two {number}")
        client.update_trace_settings(None, {"trace_level": "OFF"})
        ask("first", "off for all")
    assert [span.attributes["inferd.request.id"] for span in collecting.calls()] == [
        "as it was started",
        "and for no other",
        "as the server again",
        "of two 0",
        "of two 1",
    ]


def test_a_collector_that_is_not_there_costs_the_traces_and_nothing_else(repository: Path, transport: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        arguments = ["--transport", transport, "--trace-endpoint", endpoint, "--trace-rate", "1"]
        with serve(repository, *arguments) as server, triton.InferenceServerClient(server.address) as client:
            for _ in range(5):
                client.infer("first", inputs())
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 6, "it is not waited for"
    assert any("traces are lost" in line["message"] for line in server.lines), server.lines
