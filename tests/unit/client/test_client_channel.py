"""Targets, tokens and TLS."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from inferd_client import NO_RETRY, Client, Tls, errors
from inferd_client.channel import Connection, check_target
from stub_server import StubServer


def connection(**options: Any) -> Connection:
    return Connection(**{"target": "localhost:8001", "tls": None, "token": None, "max_message_bytes": 1000, **options})


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8001",
        "10.0.0.1:1",
        "[::1]:65535",
        "a-b.c_d.example:80",
        "dns:///host:1",
        "unix:/tmp/s",
        "ipv4:1.2.3.4:5",
    ],
)
def test_targets(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "is not host:port"),
        ("localhost", "is not host:port"),
        ("localhost:", "is not host:port"),
        (":8001", "is not host:port"),
        ("::1:8001", "is not host:port"),
        ("host:8001/path", "is not host:port"),
        ("http://localhost:8001", "is a URL"),
        ("grpcs://localhost:8001", "is a URL"),
        ("localhost:0", "no valid port"),
        ("localhost:65536", "no valid port"),
    ],
)
def test_a_target_that_is_none_is_refused_at_once(target: str, message: str, connect: Callable[..., Any]) -> None:
    with pytest.raises(errors.InvalidInput, match=message):
        connect(target)


@pytest.mark.parametrize("wrong", [{"token": ""}, {"token": "two\nlines"}, {"token": "é"}, {"max_message_bytes": 0}])
def test_other_mistakes_are_refused_at_once(wrong: dict[str, Any], connect: Callable[..., Any]) -> None:
    with pytest.raises(errors.InvalidInput):
        connect("localhost:8001", **wrong)


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(connection(token="hidden"))


def test_limits_and_balancing() -> None:
    options = dict(connection().options())
    assert options["grpc.max_send_message_length"] == options["grpc.max_receive_message_length"] == 1000
    assert "round_robin" in str(options["grpc.service_config"])


@pytest.mark.parametrize(
    ("target", "proxied"),
    [("localhost:1", False), ("127.0.0.9:1", False), ("[::1]:1", False), ("example.org:1", True), ("dns:///h:1", True)],
)
def test_this_machine_is_not_reached_through_a_proxy(target: str, proxied: bool) -> None:
    assert dict(connection(target=target).options()).get("grpc.enable_http_proxy", 1) == int(proxied)


def test_half_a_client_certificate() -> None:
    with pytest.raises(ValueError, match="needs its key"):
        Tls(certificate="cert.pem")


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Client("localhost:8001", tls=Tls(root=tmp_path / "no.pem"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificates")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return folder


@pytest.fixture(params=[False, True], ids=["server", "mutual"])
def secure(request: pytest.FixtureRequest, certificates: Path) -> Iterator[tuple[StubServer, bool]]:
    certificate, key = (certificates / "cert.pem").read_bytes(), (certificates / "key.pem").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], certificate if request.param else None, require_client_auth=request.param
    )
    server = StubServer().start(credentials)
    yield server, request.param
    server.stop()


def test_tls(secure: tuple[StubServer, bool], certificates: Path, connect: Callable[..., Any]) -> None:
    server, mutual = secure
    root, key = certificates / "cert.pem", certificates / "key.pem"
    own = {"certificate": root, "key": key} if mutual else {}
    # The certificate is localhost's; the address is not that name.
    tls = Tls(root=root, server_name="localhost", **own)
    assert connect(server.address, tls=tls, token="t").server_metadata().name == "stub"
    assert server.metadata[-1]["authorization"] == "Bearer t"
    for wrong in (Tls(root=root, **own), Tls(server_name="localhost"), None, *([Tls(root=root)] if mutual else [])):
        with pytest.raises(errors.Unavailable):
            connect(server.address, tls=wrong, retry=NO_RETRY).server_metadata()
