from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from inferd_server.config import ServerConfig
from support import models
from support.server import ServerProcess, serve

MODELS = ("simple", "simple_identity", "slow")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that examples/triton calls."""
    folder = tmp_path_factory.mktemp("examples")
    models.write(folder, "simple", models.simple())
    models.write(folder, "simple_identity", models.simple_identity())
    models.write(folder, "slow", models.slow(multiplications=400))
    return folder


@pytest.fixture(scope="session", params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def server(repository: Path, transport: str) -> Iterator[ServerProcess]:
    with serve(repository, "--transport", transport, *control()) as running:
        yield running


def control() -> tuple[str, ...]:
    """Explicit control, where the server has it."""
    if "model_control_mode" not in {field.name for field in dataclasses.fields(ServerConfig)}:
        return ()
    return ("--model-control-mode", "explicit", *(word for model in MODELS for word in ("--load-model", model)))
