"""What is measured or built for a model is of its weights too, wherever they lie."""

from pathlib import Path

import onnx
from inferd_server.runtime import fingerprint
from support import models


def test_other_weights_in_their_own_file_are_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(models.classifier(), path, save_as_external_data=True, location="weights", size_threshold=0)
    before = fingerprint.sha256(path)
    content = bytearray((tmp_path / "weights").read_bytes())
    content[0] ^= 1
    (tmp_path / "weights").write_bytes(content)
    assert fingerprint.sha256(path) != before


def test_a_model_of_one_file_is_known_by_that_files_digest(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"abc")
    assert fingerprint.sha256(tmp_path / "m") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
