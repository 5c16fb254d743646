"""Two versions side by side: what is sent to each, and folders that do not have two."""

from pathlib import Path

import numpy as np
import pytest
from inferd_protocol.golden import Golden
from inferd_protocol.grpc_service_pb2 import ModelInferRequest

from benchmarks import artefacts


def test_the_request_is_the_first_row_of_the_samples() -> None:
    inputs = {"image": np.arange(12, dtype=np.uint8).reshape(3, 4), "ids": np.arange(3, dtype=np.int64)}
    request = ModelInferRequest.FromString(artefacts.message("m", "2", Golden(inputs, {}, {})))
    assert (request.model_name, request.model_version) == ("m", "2")
    assert [(each.name, each.datatype, list(each.shape)) for each in request.inputs] == [
        ("image", "UINT8", [1, 4]),
        ("ids", "INT64", [1]),
    ]
    assert list(request.raw_input_contents) == [bytes(range(4)), bytes(8)]


@pytest.mark.parametrize("versions", [[], ["1"], ["1", "notes"]])
def test_one_version_cannot_be_compared(
    tmp_path: Path, versions: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in versions:
        (tmp_path / "cnn" / version).mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["artefacts", str(tmp_path), "cnn"])
    monkeypatch.setattr("benchmarks.load.require_h2load", lambda: None)
    assert artefacts.main() == 1
    assert "versions, where two were expected: publish both there" in capsys.readouterr().err
