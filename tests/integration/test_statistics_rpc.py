"""What operators see: RPC ModelStatistics, the metrics, the dashboard and the access log, held against each other."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.methods import METHODS
from support import models
from support.metrics import scrape, total, wait_for
from support.server import ServerProcess, serve
from tritonclient.utils import InferenceServerException

SECONDS = 60.0
MAX_BATCH_SIZE = 8
THREADS = 8
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
STAGES = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    models.write(folder, "classifier", models.classifier())
    models.write(folder, "embedding", models.embedding(), version=1)
    models.write(folder, "embedding", models.embedding(), version=2)
    (folder / "embedding" / "config.pbtxt").write_text("version_policy: { all {} }")
    models.write(folder, "slower", models.slow(multiplications=1000))
    (folder / "empty" / "1").mkdir(parents=True)
    return folder


@pytest.fixture
def start(small: Path, transport: str) -> Iterator[Callable[..., ServerProcess]]:
    """Starts a server that has counted nothing yet."""
    with contextlib.ExitStack() as running:
        yield lambda *flags: running.enter_context(
            serve(small, "--transport", transport, "--max-batch-size", str(MAX_BATCH_SIZE), *flags)
        )


def images(rows: int) -> list[triton.InferInput]:
    made = triton.InferInput("image", [rows, 4, 4, 1], "UINT8")
    made.set_data_from_numpy(np.zeros((rows, 4, 4, 1), np.uint8))
    return [made]


def ids(value: int) -> list[triton.InferInput]:
    made = triton.InferInput("ids", [1, 3], "INT64")
    made.set_data_from_numpy(np.full((1, 3), value, np.int64))
    return [made]


def slow_request(rows: int, **parameters: int) -> bytes:
    return pb.ModelInferRequest(
        model_name="slower",
        parameters={name: pb.InferParameter(int64_param=value) for name, value in parameters.items()},
        inputs=[pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[rows, 256])],
        raw_input_contents=[bytes(rows * 1024)],
    ).SerializeToString()


def statistics(address: str, *model: str) -> list[Any]:
    with triton.InferenceServerClient(address) as client:
        return list(client.get_inference_statistics(*model).model_stats)


def load(server: ServerProcess) -> list[int]:
    """Requests of all sizes from several threads. Returns the rows of each."""
    sizes = [1 + number % 20 for number in range(200)]
    with triton.InferenceServerClient(server.address) as client, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda rows: client.infer("classifier", images(rows), request_id=f"{rows} rows"), sizes))
    return sizes


def check_sums(model: Any, requests: int, rows: int) -> None:
    stats = model.inference_stats
    assert (stats.success.count, model.inference_count) == (requests, rows)
    assert [getattr(stats, stage).count for stage in STAGES] == [requests] * len(STAGES)
    assert stats.success.ns >= sum(getattr(stats, stage).ns for stage in STAGES) > 0
    batches = model.batch_stats
    assert sum(batch.batch_size * batch.compute_infer.count for batch in batches) == rows
    assert sum(batch.compute_infer.count for batch in batches) == model.execution_count
    assert max(batch.batch_size for batch in batches) <= MAX_BATCH_SIZE
    for stage in STAGES[1:]:
        once = sum(getattr(batch, stage).ns for batch in batches)
        # A batch counts for each of its requests, and a request that is split for each of its batches.
        assert 0 < once <= getattr(stats, stage).ns


def test_statistics_add_up_under_load_and_the_metrics_agree(start: Callable[..., ServerProcess]) -> None:
    server = start("--instances", "2")
    sizes = load(server)
    (model,) = statistics(server.address, "classifier")
    check_sums(model, len(sizes), sum(sizes))
    assert model.inference_stats.fail.count == 0
    metrics = scrape(server)
    labels = {"model": "classifier", "version": "1"}
    assert total(metrics, "inferd_requests_succeeded_total", **labels) == len(sizes)
    assert total(metrics, "inferd_rows_total", **labels) == sum(sizes)
    assert total(metrics, "inferd_batch_size_rows_count", **labels) == model.execution_count
    assert total(metrics, "inferd_batch_size_rows_sum", **labels) == sum(sizes)
    for name in ("request", *STAGES):
        expected = model.inference_stats.success if name == "request" else getattr(model.inference_stats, name)
        assert total(metrics, f"inferd_{name}_duration_seconds_count", **labels) == expected.count
        assert total(metrics, f"inferd_{name}_duration_seconds_bucket", le="+Inf", **labels) == expected.count
        assert total(metrics, f"inferd_{name}_duration_seconds_sum", **labels) == pytest.approx(expected.ns / 1e9)
    assert total(metrics, "inferd_pending_requests") == 0
    assert total(metrics, "inferd_model_ready", provider="CPUExecutionProvider", **labels) == 1
    assert total(metrics, "inferd_model_ready", model="empty") == 0
    assert total(metrics, "inferd_model_loads_total", outcome="success", **labels) == 1
    assert total(metrics, "inferd_model_loads_total", outcome="failure", model="empty") == 1
    assert total(metrics, "inferd_resident_memory_bytes") > 10**7


def test_every_answer_that_a_caller_has_is_counted(start: Callable[..., ServerProcess]) -> None:
    server = start()
    with triton.InferenceServerClient(server.address) as client:
        for number in range(1, 101):
            client.infer("classifier", images(number % 10))
            (model,) = client.get_inference_statistics("classifier").model_stats
            assert model.inference_stats.success.count == number


def test_which_versions_are_told(start: Callable[..., ServerProcess]) -> None:
    server = start()
    everything = [("classifier", "1"), ("embedding", "1"), ("embedding", "2"), ("slower", "1")]
    with triton.InferenceServerClient(server.address) as client:
        client.infer("embedding", ids(1), model_version="1")
        assert "statistics" in client.get_server_metadata().extensions

        def told(*model: str) -> list[tuple[str, str]]:
            return [(each.name, each.version) for each in client.get_inference_statistics(*model).model_stats]

        assert told() == everything
        assert told("embedding") == [("embedding", "1"), ("embedding", "2")]
        assert told("embedding", "2") == [("embedding", "2")]
        for model, code in (
            (("nothing",), "NOT_FOUND"),
            (("embedding", "3"), "NOT_FOUND"),
            (("embedding", "two"), "INVALID_ARGUMENT"),
            (("empty",), "UNAVAILABLE"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                told(*model)
            assert caught.value.status() == f"StatusCode.{code}"
    one, two = statistics(server.address, "embedding")
    assert (one.inference_count, two.inference_count) == (1, 0)
    assert one.last_inference > 1_700_000_000_000
    assert two.last_inference == 0


def test_failures_are_counted_by_reason(start: Callable[..., ServerProcess]) -> None:
    server = start("--max-queue-size", "3")
    with triton.InferenceServerClient(server.address) as client:
        for model, inputs in (("embedding", ids(99)), ("embedding", images(1)), ("classifier", [])):
            with pytest.raises(InferenceServerException):
                client.infer(model, inputs)
        for model in ("nothing", "empty"):
            with pytest.raises(InferenceServerException):
                client.infer(model, images(1))
    with grpc.insecure_channel(server.address) as channel:
        infer = channel.unary_unary(METHODS["ModelInfer"].path)
        short = pb.ModelInferRequest.FromString(slow_request(1))
        short.raw_input_contents[0] = b"short"
        for message in (b"\xff\xff", short.SerializeToString()):
            with pytest.raises(grpc.RpcError):
                infer(message, timeout=SECONDS)
        running = infer.future(slow_request(100 * MAX_BATCH_SIZE), timeout=SECONDS)
        wait_for(server, "inferd_rows_total", 1, model="slower")
        timed_out = infer.future(slow_request(1, timeout=1), timeout=SECONDS)
        wait_for(server, "inferd_pending_requests", 2, model="slower")
        late = infer.future(slow_request(1), timeout=0.001)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        running.result(SECONDS)
        assert timed_out.code() is grpc.StatusCode.UNAVAILABLE
    metrics = scrape(server)
    failed = {
        dict(key)["model"] + " " + dict(key)["reason"]: value
        for key, value in metrics["inferd_requests_failed_total"].items()
    }
    late_counted = failed.pop("slower deadline", 0) + failed.pop("slower cancelled", 0)
    assert late_counted <= 1, "a deadline so short may pass before the server has the call"
    assert failed == {
        "classifier invalid": 1,
        "embedding invalid": 2,
        "slower invalid": 1,
        "slower queue_timeout": 1,
    }
    refused = {dict(key)["reason"]: value for key, value in metrics["inferd_requests_refused_total"].items()}
    assert refused == {"loading": 1, "malformed": 1, "not_found": 1}
    # The call whose deadline was so short may be counted between two looks.
    while not failures_agree(server):
        pass


def failures_agree(server: ServerProcess) -> bool:
    """Whether the metrics and ModelStatistics say the same of each model's failures."""
    metrics = scrape(server)
    return all(
        model.inference_stats.fail.count
        == total(metrics, "inferd_requests_failed_total", model=model.name, version=model.version)
        for model in statistics(server.address)
    )


def test_a_full_queue_and_a_cancelled_call_are_counted(start: Callable[..., ServerProcess]) -> None:
    server = start("--max-queue-size", "2")
    with grpc.insecure_channel(server.address) as channel:
        infer = channel.unary_unary(METHODS["ModelInfer"].path)
        running = infer.future(slow_request(100 * MAX_BATCH_SIZE), timeout=SECONDS)
        wait_for(server, "inferd_rows_total", 1, model="slower")
        gone = infer.future(slow_request(1), timeout=SECONDS)
        wait_for(server, "inferd_pending_requests", 2, model="slower")
        with pytest.raises(grpc.RpcError) as caught:
            infer(slow_request(1), timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        gone.cancel()
        running.result(SECONDS)
        wait_for(server, "inferd_requests_failed_total", 1, model="slower", reason="cancelled")
    assert total(scrape(server), "inferd_requests_failed_total", model="slower", reason="queue_full") == 1


def test_workers_answer_for_all_of_them(start: Callable[..., ServerProcess]) -> None:
    server = start("--workers", "2")
    answered = 0
    while min(successes(server).values()) == 0:
        # A connection of its own, so that the kernel chooses a worker anew.
        with triton.InferenceServerClient(server.address, channel_args=OWN_CONNECTION) as client:
            client.infer("classifier", images(2))
        answered += 1
    assert sum(successes(server).values()) == answered
    for _ in range(4):
        (model,) = statistics(server.address, "classifier")
        check_sums(model, answered, 2 * answered)
    assert set(scrape(server)["inferd_worker_up"].values()) == {1}
    victim = int(Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[0])
    os.kill(victim, signal.SIGKILL)
    server.wait_for("worker_replaced")
    assert 0 < sum(successes(server).values()) < answered


OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def successes(server: ServerProcess) -> dict[str, float]:
    series = scrape(server)["inferd_requests_succeeded_total"]
    return {dict(key)["worker"]: value for key, value in series.items() if dict(key)["model"] == "classifier"}


def test_a_taken_port_of_the_metrics_is_said_by_workers_too(small: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        second = ServerProcess(small, "--workers", "2", "--metrics-port", port)
        assert second.wait() == 2
    (line,) = [line for line in second.other_output if "cannot listen" in line]
    assert f"127.0.0.1:{port}" in line
    assert "--metrics-port names another" in line


def test_metrics_can_be_off_and_elsewhere(start: Callable[..., ServerProcess]) -> None:
    assert start("--metrics-port", "off").metrics_address == ""
    elsewhere = start("--metrics-address", "127.0.0.2")
    assert elsewhere.metrics_address.startswith("127.0.0.2:")
    assert total(scrape(elsewhere), "inferd_model_ready") == 4


def test_the_dashboard_asks_for_nothing_that_the_server_does_not_export(start: Callable[..., ServerProcess]) -> None:
    server = start()
    with triton.InferenceServerClient(server.address) as client:
        for model in ("classifier", "embedding", "nothing"):
            with pytest.raises(InferenceServerException):
                client.infer(model, [])
    exported = set(scrape(server))
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions += [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    asked = {name for expression in expressions for name in re.findall(r"\binferd_\w+", expression)}
    assert len(expressions) > 8
    assert asked
    assert asked <= exported
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_access_log_has_a_line_for_each_request(start: Callable[..., ServerProcess], tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    server = start("--access-log", str(path))
    sizes = load(server)
    with triton.InferenceServerClient(server.address) as client:
        client.infer("classifier", images(0), request_id="empty")
        for model, request_id in (("nothing", "n"), ("classifier", "c"), ("embedding", "e")):
            with pytest.raises(InferenceServerException):
                client.infer(model, ids(99), request_id=request_id)
    assert server.stop() == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len(sizes) + 4
    answered = [line for line in lines if line["code"] == "OK"]
    assert Counter(line["rows"] for line in answered) == Counter([*sizes, 0])
    for line in answered:
        assert line["id"] == (f"{line['rows']} rows" if line["rows"] else "empty")
        assert (line["model"], line["version"]) == ("classifier", "1")
        assert 0 <= line["total_us"] - sum(line[f"{stage}_us"] for stage in STAGES) <= len(STAGES)
        assert set(line) == {"time", "id", "model", "version", "rows", "code", "total_us", *(f"{s}_us" for s in STAGES)}
    failed = {line["id"]: (line["code"], line["reason"], line["rows"]) for line in lines if line["code"] != "OK"}
    assert failed == {
        "n": ("NOT_FOUND", "not_found", None),
        "c": ("INVALID_ARGUMENT", "invalid", None),
        "e": ("INVALID_ARGUMENT", "invalid", 1),
    }


def test_a_full_disk_ends_the_access_log_and_not_the_server(start: Callable[..., ServerProcess]) -> None:
    server = start("--access-log", "/dev/full")
    sizes = load(server)
    assert server.stop() == 0
    assert len(sizes) == 200
    (line,) = [line for line in server.lines if "access-log" in line["message"]]
    assert "ends here" in line["message"]
