"""LogSettings and TraceSetting with tritonclient."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from support import models
from support.server import serve
from tritonclient.utils import InferenceServerException

LOG = {"log_file": "", "log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0}
TRACE = {
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_file": [""],
    "trace_mode": ["opentelemetry"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("repository")
    models.write(made, "classifier", models.classifier())
    models.write(made, "pair", models.sum_and_difference())
    return made


@pytest.fixture(scope="module")
def client(folder: Path, transport: str) -> Iterator[triton.InferenceServerClient]:
    with serve(folder, "--transport", transport) as server, triton.InferenceServerClient(server.address) as connected:
        yield connected


def log(client: triton.InferenceServerClient, **changes: object) -> dict[str, object]:
    answer = client.update_log_settings(changes) if changes else client.get_log_settings()
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in answer.settings.items()}


def trace(client: triton.InferenceServerClient, model: str | None = None, **changes: object) -> dict[str, list[str]]:
    answer = client.update_trace_settings(model, changes) if changes else client.get_trace_settings(model)
    return {name: list(value.value) for name, value in answer.settings.items()}


def test_log_settings_are_really_changed(folder: Path, transport: str) -> None:
    with serve(folder, "--transport", transport) as server:
        with triton.InferenceServerClient(server.address) as client:
            assert log(client) == {**LOG, "log_format": "json"}
            assert log(client, log_verbose_level=2) == {**LOG, "log_verbose_level": 2, "log_format": "json"}
            assert log(client, log_format="text", log_error=False)["log_format"] == "text"
            quiet = {**LOG, "log_info": False, "log_error": False, "log_verbose_level": 2, "log_format": "text"}
            assert log(client, log_info=False) == quiet
            assert log(client) == quiet
        assert server.stop() == 0
        assert [line["message"] for line in server.lines[-2:]] == [
            "log settings change: verbose_level=2",
            "log settings change: error=False, format=text",
        ]
        (last,) = server.other_output
        assert last.endswith("INFO    log settings change: info=False\n"), "'stopped' is information too"


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"log_file": "x"}, "UNIMPLEMENTED", "log_file cannot be changed: the lines go to stderr"),
        ({"log_format": "ISO8601"}, "INVALID_ARGUMENT", "expected to be text or json, got 'ISO8601'"),
        ({"log_format": "default"}, "INVALID_ARGUMENT", "expected to be text or json, got 'default'"),
        ({"log_info": None}, "INVALID_ARGUMENT", "'log_info' is expected as bool_param, got nothing"),
        ({"log_loud": True}, "INVALID_ARGUMENT", "'log_loud' is unknown: expected one of log_info, log_warning"),
        ({"log_verbose_level": 1, "log_file": "x"}, "UNIMPLEMENTED", "log_file cannot be changed"),
    ],
)
def test_log_settings_that_cannot_be_had(
    client: triton.InferenceServerClient, changes: dict[str, object], code: str, text: str
) -> None:
    with pytest.raises(InferenceServerException, match=text) as caught:
        log(client, **changes)
    assert caught.value.status() == f"StatusCode.{code}"
    assert log(client) == {**LOG, "log_format": "json"}, "nothing is changed"


def test_trace_settings_are_kept_for_the_server_and_for_a_model(client: triton.InferenceServerClient) -> None:
    assert trace(client) == TRACE
    assert trace(client, trace_level="OFF", trace_rate="5") == {**TRACE, "trace_rate": ["5"]}
    assert trace(client, "pair") == {**TRACE, "trace_rate": ["5"]}
    assert trace(client, "pair", trace_rate="7", trace_count="9")["trace_rate"] == ["7"]
    assert trace(client, "pair", trace_count=None) == {**TRACE, "trace_rate": ["7"]}
    assert trace(client, trace_rate=None) == TRACE
    assert trace(client, "pair") == {**TRACE, "trace_rate": ["7"]}
    assert trace(client, "classifier") == TRACE
    assert trace(client, **TRACE) == TRACE, "what was answered is taken"


@pytest.mark.parametrize(
    ("model", "changes", "code", "text"),
    [
        (None, {"trace_level": "TIMESTAMPS"}, "UNIMPLEMENTED", "TIMESTAMPS needs a collector: .* --trace-endpoint"),
        ("pair", {"trace_level": ["OFF", "TENSORS"]}, "UNIMPLEMENTED", "TENSORS would put payloads into traces"),
        (None, {"trace_level": "ALL"}, "INVALID_ARGUMENT", "trace_level 'ALL' is unknown: expected OFF or TIMESTAMPS"),
        (None, {"trace_file": "x"}, "UNIMPLEMENTED", "trace_file 'x' asks for traces of a kind"),
        (None, {"trace_mode": "triton"}, "UNIMPLEMENTED", "expected 'opentelemetry'"),
        (None, {"trace_rate": "-1"}, "INVALID_ARGUMENT", "whole number from 0 to 2147483647, got '-1'"),
        (None, {"trace_rate": "many"}, "INVALID_ARGUMENT", "got 'many'"),
        (None, {"trace_count": ["1", "2"]}, "INVALID_ARGUMENT", "expected to have one value, got 2"),
        (None, {"trace_colour": "1"}, "INVALID_ARGUMENT", "'trace_colour' is unknown: expected one of trace_level"),
        (None, {"trace_count": "1", "trace_file": "x"}, "UNIMPLEMENTED", "trace_file 'x' asks for traces"),
        ("nothing", {}, "NOT_FOUND", "model 'nothing' is not known"),
        ("nothing", {"trace_level": "OFF"}, "NOT_FOUND", "model 'nothing' is not known"),
    ],
)
def test_trace_settings_that_cannot_be_had(
    client: triton.InferenceServerClient, model: str | None, changes: dict[str, object], code: str, text: str
) -> None:
    with pytest.raises(InferenceServerException, match=text) as caught:
        trace(client, model, **changes)
    assert caught.value.status() == f"StatusCode.{code}"
    assert trace(client) == TRACE
