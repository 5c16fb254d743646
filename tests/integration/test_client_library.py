"""The client library against a real server process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from inferd_client import AsyncClient, Client, Retry, errors, parse_classes
from inferd_protocol.command import main
from inferd_protocol.datatypes import BY_NAME
from numpy.testing import assert_allclose, assert_array_equal
from support import models
from support.limits import MAX_MESSAGE_SIZE, MAX_REQUEST_ROWS
from support.models import ELEMENT_TYPES
from support.server import ServerProcess, serve

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), dtype=np.uint8)
PATIENT = Retry(attempts=1000, initial=0.01, maximum=0.1, overloaded=True)


@pytest.fixture(scope="module")
def connected(server: ServerProcess) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


def test_it_is_there_and_describes_itself(connected: Client) -> None:
    assert connected.server_live()
    assert connected.server_ready()
    assert connected.model_ready("classifier")
    assert not connected.model_ready("nothing")
    assert not connected.model_ready("corrupt")
    assert "classification" in connected.server_metadata().extensions
    model = connected.model_metadata("classifier")
    assert [(t.name, t.datatype, t.shape) for t in model.inputs] == [("image", BY_NAME["UINT8"], (-1, 4, 4, 1))]
    assert model.batched


@pytest.mark.parametrize("datatype", ELEMENT_TYPES)
def test_every_datatype_there_and_back(connected: Client, datatype: str) -> None:
    if datatype == "BYTES":
        array = np.array([["a", "", "ü"], [b"x", b"y", b"z"]], object)
        answer = connected.infer("identity_BYTES", {"x": array})["y"]
        assert answer.tolist() == [[b"a", b"", "ü".encode()], [b"x", b"y", b"z"]]
        return
    dtype = np.dtype(np.float32) if datatype == "BF16" else BY_NAME[datatype].numpy
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    for given in (array, array.T.copy().T, array.astype(dtype.newbyteorder(">"))):
        answer = connected.infer(f"identity_{datatype}", {"x": given})["y"]
        assert_array_equal(answer, array)
        assert answer.dtype == dtype


def test_the_same_answer_as_in_numpy(connected: Client) -> None:
    for rows in (1, 3, 10, 1):
        result = connected.infer("classifier", {"image": IMAGES[:rows]}, request_id="seven")
        assert_allclose(result["probabilities"], models.classify(IMAGES[:rows]), rtol=1e-5)
        assert (result.model_name, result.id) == ("classifier", "seven")


def test_outputs_come_in_the_order_asked(connected: Client) -> None:
    inputs = {name: np.full((2, 4), value, np.float32) for name, value in (("a", 3), ("b", 1))}
    assert list(connected.infer("pair", inputs)) == ["sum", "difference"]
    result = connected.infer("pair", inputs, outputs=["difference", "sum"])
    assert list(result) == ["difference", "sum"]
    assert_array_equal(result["difference"], np.full((2, 4), 2))


def test_classes_have_labels(connected: Client) -> None:
    result = connected.infer("classifier", {"image": IMAGES[:3]}, classification={"probabilities": 2})
    expected = models.classify(IMAGES[:3])
    for row, best in zip(expected, parse_classes(result["probabilities"]), strict=True):
        assert [(c.index, c.label) for c in best] == [(i, models.CLASSES[i]) for i in np.argsort(-row)[:2]]
        assert best[0].value == pytest.approx(row.max(), rel=1e-4)


def test_refusals(connected: Client) -> None:
    with pytest.raises(errors.ModelNotFound):
        connected.infer("nothing", {"x": IMAGES})
    with pytest.raises(errors.ModelNotFound):
        connected.infer("classifier", {"image": IMAGES}, version="9")
    with pytest.raises(errors.InvalidInput):
        connected.infer("classifier", {"image": IMAGES[:, :2]})
    with pytest.raises(errors.NotReady):
        connected.infer("corrupt", {"x": IMAGES})
    with pytest.raises(errors.InvalidInput):
        connected.infer("pair", {"a": np.ones((1, 4), np.float32)})
    with pytest.raises(errors.InvalidInput, match="out of data bounds"):
        connected.infer("embedding", {"ids": np.full((1, 3), 10_000)})


def test_a_batch_over_the_servers_limit_arrives_in_parts(connected: Client) -> None:
    rows = np.arange(4 * MAX_MESSAGE_SIZE // 12 // 4 * 3, dtype=np.float32)[: MAX_REQUEST_ROWS * 3].reshape(-1, 3)
    assert rows.nbytes < MAX_MESSAGE_SIZE
    assert_array_equal(connected.infer("identity_FP32", {"x": rows})["y"], rows)
    wide = np.ones((900, 512), np.float32)
    assert wide.nbytes > MAX_MESSAGE_SIZE
    assert_allclose(connected.infer("ragged", {"x": wide})["total"], np.full(900, 512))


def test_the_deadline_passes_while_the_model_runs(connected: Client) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        connected.infer("slower", {"x": np.ones((900, 256), np.float32)}, timeout=0.05)
    assert connected.infer("slow", {"x": np.ones((1, 256), np.float32)})["y"].shape == (1, 256)


def test_many_in_flight_and_in_order_awaiting(server: ServerProcess) -> None:
    async def main() -> None:
        async with AsyncClient(server.address) as client:
            batches = ({"image": IMAGES[number % 10 :][:1]} for number in range(200))
            answers = [r["probabilities"] async for r in client.infer_many("classifier", batches, concurrency=32)]
        expected = np.tile(models.classify(IMAGES), (20, 1))
        assert_allclose(np.concatenate(answers), expected, rtol=1e-5)

    asyncio.run(main())


@pytest.fixture(scope="module")
def narrow(repository: Path, transport: str) -> Iterator[ServerProcess]:
    """A server whose queue takes one request."""
    with serve(repository, "--transport", transport, "--max-batch-size", "8", "--max-queue-size", "1") as running:
        yield running


class TestOverload:
    def test_a_full_queue_is_told_apart(self, narrow: ServerProcess) -> None:
        slow = itertools.repeat({"x": np.ones((200, 256), np.float32)}, 12)
        with Client(narrow.address) as client, pytest.raises(errors.Overloaded):
            list(client.infer_many("slow", slow, concurrency=12))

    def test_a_job_that_is_patient_gets_through(self, narrow: ServerProcess) -> None:
        slow = itertools.repeat({"x": np.ones((20, 256), np.float32)}, 12)
        with Client(narrow.address, retry=PATIENT) as client:
            assert len(list(client.infer_many("slow", slow, concurrency=6))) == 12


@pytest.mark.parametrize("extension", ["npy", "csv", "parquet"])
def test_scoring_a_file(server: ServerProcess, tmp_path: Path, extension: str) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (300, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    output = tmp_path / f"scores.{extension}"
    options = ["--model", "classifier", "--server", server.address, "--batch-size", "16"]
    assert main(["score", str(tmp_path / "rows.npy"), "--output", str(output), *options]) == 0
    if extension == "npy":
        scores = np.load(output)
    elif extension == "csv":
        assert output.read_text().splitlines()[0].startswith("row,predicted,label,probabilities_0,")
        scores = np.loadtxt(output, delimiter=",", skiprows=1, usecols=(3, 4, 5))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        scores = np.array(parquet.read_table(output)["probabilities"].to_pylist())
    assert_allclose(scores, models.classify(rows), rtol=1e-4)
