"""What the package exports, and what importing it costs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import inferd_client
import pytest

EXPORTED = [
    "DEFAULT_MAX_MESSAGE_BYTES",
    "NO_RETRY",
    "AsyncClient",
    "BadResponse",
    "BatchStatistics",
    "Cancelled",
    "Classification",
    "Client",
    "ClientClosed",
    "ControlOff",
    "DeadlineExceeded",
    "Draining",
    "Duration",
    "InferResult",
    "InferdError",
    "InvalidInput",
    "MessageTooLarge",
    "ModelConfig",
    "ModelIndex",
    "ModelMetadata",
    "ModelNotFound",
    "ModelStatistics",
    "NotReady",
    "Overloaded",
    "PermissionDenied",
    "Retry",
    "ServerFault",
    "ServerMetadata",
    "TensorMetadata",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "parse_classes",
    "top_classes",
]


def top_level_modules(code: str) -> set[str]:
    """The top-level modules outside the standard library that are imported after `code`, beside those before it."""
    program = f"""
import json, sys
before = set(sys.modules)
{code}
print(json.dumps([name for name in sys.modules if name not in before]))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(result.stdout)} - sys.stdlib_module_names


def test_the_exported_names_are_these() -> None:
    assert inferd_client.__all__ == EXPORTED
    for name in EXPORTED:
        assert getattr(inferd_client, name) is not None
    assert set(EXPORTED) <= set(dir(inferd_client))


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        inferd_client.Nothing  # noqa: B018 - the access is the test


def test_the_client_needs_three_packages_and_no_more() -> None:
    loaded = top_level_modules("from inferd_client import AsyncClient, Client, parse_classes")
    # grpc looks for its sister packages itself, and they are imported where they happen to be installed.
    grpcs = {
        "grpc",
        "grpc_health",
        "grpc_reflection",
        "grpc_status",
        "grpc_tools",
        "typing_extensions",
        "cython_runtime",
    }
    expected = {"google", "numpy", "inferd_client", "inferd_protocol"} | grpcs
    assert {name for name in loaded - expected if not name.startswith("_")} == set()


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("infer", "INFER"),
        ("score", "SCORE"),
        ("models", "MODELS"),
        ("stats", "STATS"),
        ("control", "LOAD"),
        ("control", "UNLOAD"),
        ("control", "LABEL"),
    ],
)
def test_help_imports_nothing_but_the_commands(module: str, command: str) -> None:
    code = f"""
import argparse, importlib
module = importlib.import_module("inferd_client.commands.{module}")
module.{command}.add_arguments(argparse.ArgumentParser())
"""
    assert top_level_modules(code) == {"inferd_client", "inferd_protocol"}


def test_grpc_is_imported_in_one_place() -> None:
    for module in (
        "core",
        "requests",
        "results",
        "retry",
        "errors",
        "metadata",
        "splitting",
        "known",
        "repository",
        "model_statistics",
    ):
        assert "grpc" not in top_level_modules(f"import inferd_client.{module}"), module
    assert "grpc" in top_level_modules("import inferd_client.channel")


@pytest.mark.parametrize("other", ["tritonclient.grpc"])
def test_it_lives_beside_other_clients_of_the_protocol(other: str) -> None:
    pytest.importorskip(other.partition(".")[0])
    for first, second in (("inferd_client.client", other), (other, "inferd_client.client")):
        subprocess.run([sys.executable, "-c", f"import {first}, {second}"], check=True)


def test_every_module_says_what_it_is_for() -> None:
    for name in ("aio", "channel", "client", "core", "errors", "testing"):
        assert importlib.import_module(f"inferd_client.{name}").__doc__
