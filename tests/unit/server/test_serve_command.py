"""`inferd serve` before it serves: flags, and mistakes that are one line and exit status 2."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import socket
from pathlib import Path

import pytest
from inferd_protocol.command import CommandError, main
from inferd_server.cli import SERVE
from inferd_server.config import LogFormat, ServerConfig
from inferd_server.errors import ConfigurationError
from inferd_server.observability import log
from onnx import TensorProto
from support import models

NO_METRICS = ("--metrics-port", "off")


def status_and_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["serve", *arguments])
    lines = capsys.readouterr().err.splitlines()
    return status, lines[-1]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path / "nothing", "does not exist: expected <model>/<version>/model.onnx"),
        (lambda path: path, "holds no model: expected <model>/<version>/model.onnx"),
        (lambda path: path / "file", "is no folder"),
    ],
)
def test_a_repository_without_models_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make, text: str
) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    (tmp_path / ".hidden" / "1").mkdir(parents=True)
    status, line = status_and_line(capsys, "--model-repository", str(make(tmp_path)))
    assert status == 2
    assert text in line
    assert line.startswith("inferd serve: --model-repository")


def test_a_taken_port_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.write(tmp_path, "m", models.identity(TensorProto.FLOAT))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, line = status_and_line(
            capsys, "--model-repository", str(tmp_path), "--grpc-port", str(port), *NO_METRICS
        )
    assert status == 2
    assert f"cannot listen on 127.0.0.1:{port}" in line


def test_a_taken_port_of_the_metrics_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.write(tmp_path, "m", models.identity(TensorProto.FLOAT))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = ["--grpc-port", "0", "--metrics-port", str(port)]
        status, line = status_and_line(capsys, "--model-repository", str(tmp_path), *flags)
    assert status == 2
    assert f"cannot serve metrics on 127.0.0.1:{port}" in line
    assert "--metrics-port names another, 0 takes a free one, off serves no metrics" in line


def test_an_access_log_that_cannot_be_written_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.write(tmp_path, "m", models.identity(TensorProto.FLOAT))
    path = tmp_path / "nothing" / "log"
    status, line = status_and_line(capsys, "--model-repository", str(tmp_path), "--access-log", str(path))
    assert status == 2
    assert f"--access-log {path} cannot be written" in line


def test_a_required_model_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.write(tmp_path, "m", models.identity(TensorProto.FLOAT))
    status, line = status_and_line(capsys, "--model-repository", str(tmp_path), "--required-model", "other")
    assert status == 2
    assert "--required-model other is not in the repository, which holds ['m']" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--max-batch-size", "0"], "--max-batch-size expects at least 1, got 0"),
        (["--response-cache-bytes", "-1"], "--response-cache-bytes expects at least 0, got -1"),
        (["--grpc-port", "70000"], "--grpc-port expects at most 65535"),
        (["--metrics-port", "-1"], "--metrics-port expects at least 0, got -1"),
        (["--metrics-port", "70000"], "--metrics-port expects at most 65535"),
        (["--metrics-port", "8001"], "--metrics-port and --grpc-port are both 8001: expected two ports"),
        (["--trace-endpoint", "host:4317"], "expects http://HOST:PORT or https://HOST:PORT, got 'host:4317'"),
        (["--trace-endpoint", "http://h:1/v1/traces"], "--trace-endpoint expects http://HOST:PORT"),
        (["--trace-rate", "-1"], "--trace-rate expects at least 0, got -1"),
        (["--grpc-use-ssl"], "needs --grpc-server-cert and --grpc-server-key"),
        (["--grpc-server-cert", "x.pem"], "TLS is off: add --grpc-use-ssl"),
        (["--grpc-use-ssl", "--grpc-server-cert", "no.pem", "--grpc-server-key", "no.key"], "no.pem is not a file"),
        (["--grpc-use-ssl-mutual"], "needs --grpc-root-cert"),
    ],
)
def test_settings_that_make_no_sense_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    status, line = status_and_line(capsys, "--model-repository", str(tmp_path), *arguments)
    assert status == 2
    assert text in line


def test_every_setting_has_a_flag_and_every_flag_a_text() -> None:
    parser = argparse.ArgumentParser()
    SERVE.add_arguments(parser)
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    assert set(flags) == {field.name for field in dataclasses.fields(ServerConfig)}
    assert all(action.help for action in flags.values())


def test_defaults_on_the_command_line_are_those_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    parser = argparse.ArgumentParser()
    SERVE.add_arguments(parser)
    monkeypatch.setattr("inferd_server.app.run", lambda config: seen.append(config) or 0)
    monkeypatch.setattr("inferd_server.observability.log.configure", lambda *_: None)
    SERVE.run(parser.parse_args(["--model-repository", str(tmp_path)]))
    assert seen == [ServerConfig(model_repository=tmp_path)]


def test_a_configuration_error_is_a_command_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        ServerConfig(model_repository=tmp_path, instances=0)
    parser = argparse.ArgumentParser()
    SERVE.add_arguments(parser)
    with pytest.raises(CommandError):
        SERVE.run(parser.parse_args(["--model-repository", str(tmp_path), "--instances", "0"]))


def test_json_lines_have_their_fields(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    log.configure(LogFormat.JSON, "info")  # type: ignore[arg-type]
    logger = logging.getLogger("inferd_server.test")
    log.event(logger, "ready", "it is up", address="here:1")
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "ready"
    assert line["address"] == "here:1"
    assert line["message"] == "it is up"
    assert line["level"] == "info"
