from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import models
from support.server import ServerProcess, serve

MODELS = ("simple", "simple_identity", "slow", "sums")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models that examples/triton calls."""
    folder = tmp_path_factory.mktemp("examples")
    models.write(folder, "simple", models.simple())
    models.write(folder, "simple_identity", models.simple_identity())
    models.write(folder, "slow", models.slow(multiplications=400))
    models.write(folder, "sums", models.accumulator())
    (folder / "sums" / "config.pbtxt").write_text(
        f"max_batch_size: 16 sequence_batching {{ {models.ACCUMULATOR_SEQUENCES} }}"
    )
    return folder


@pytest.fixture(scope="session", params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def server(repository: Path, transport: str) -> Iterator[ServerProcess]:
    loaded = (word for model in MODELS for word in ("--load-model", model))
    with serve(repository, "--transport", transport, "--model-control-mode", "explicit", *loaded) as running:
        yield running
