from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from support import models
from support.limits import MAX_BATCH_SIZE, MAX_MESSAGE_SIZE, MAX_REQUEST_ROWS
from support.server import ServerProcess, serve


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model of each kind, and two that cannot be loaded."""
    folder = tmp_path_factory.mktemp("repository")
    models.write(folder, "classifier", models.classifier(), version=1)
    models.write(folder, "classifier", models.classifier(), version=2)
    models.write(folder, "pair", models.sum_and_difference())
    models.write(folder, "ragged", models.ragged())
    models.write(folder, "fixed", models.fixed_batch())
    models.write(folder, "mean", models.batch_mean())
    models.write(folder, "embedding", models.embedding())
    models.write(folder, "slow", models.slow())
    models.write(folder, "slower", models.slow(multiplications=1000))
    for name, element_type in models.ELEMENT_TYPES.items():
        models.write(folder, f"identity_{name}", models.identity(element_type))
    corrupt = folder / "corrupt" / "1" / "model.onnx"
    corrupt.parent.mkdir(parents=True)
    corrupt.write_bytes(b"no model")
    (folder / "empty" / "1").mkdir(parents=True)
    return folder


@pytest.fixture(scope="session", params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> str:
    """What speaks gRPC: every test that uses a server runs on each."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def server(repository: Path, transport: str) -> Iterator[ServerProcess]:
    """A server over `repository` with small limits."""
    with serve(
        repository,
        *("--transport", transport),
        *("--max-batch-size", str(MAX_BATCH_SIZE)),
        *("--grpc-max-message-size", str(MAX_MESSAGE_SIZE)),
        *("--max-request-rows", str(MAX_REQUEST_ROWS)),
    ) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address) as connected:
        yield connected
