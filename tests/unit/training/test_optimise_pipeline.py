"""`inferd optimize` from an export to an export that is published and served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from inferd_training.errors import ModelError, OptimiseError, VerificationError
from inferd_training.export import weights
from inferd_training.files import sha256
from inferd_training.optimise import quantise
from inferd_training.optimise.pipeline import Job, optimise
from inferd_training.optimise.variants import named
from inferd_training.publish import publish
from optimise_models import classifier, images, write_export
from support.server import serve


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    np.savez(path, image=images(1500))
    return path


def job(tmp_path: Path, export: Path, rows: Path, **changes: object) -> Job:
    given = {"calibration": rows, "evaluation": rows, "search_seconds": 0.2, "max_drop_points": 50.0, **changes}
    return Job(export=export, output=tmp_path / "optimised", **given)  # type: ignore[arg-type]


def test_the_winner_is_an_export_that_is_published_and_served(tmp_path: Path, rows: Path) -> None:
    export = write_export(tmp_path / "export", classifier(detours=12))
    smaller = write_export(tmp_path / "smaller", classifier())
    report, table = optimise(job(tmp_path, export, rows, also=(smaller,)))
    folder = tmp_path / "optimised"
    assert {entry.name for entry in folder.iterdir()} == {
        "model.onnx",
        "golden.npz",
        "report.json",
        "optimisation.md",
        "optimisation.png",
    }
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (folder / "optimisation.md").read_text() == table
    found = report["optimisation"]
    assert found["parent_sha256"] == json.loads((export / "report.json").read_text())["model"]["sha256"]
    names = [candidate["name"] for candidate in found["candidates"]]
    assert names[0] == "original"
    assert {"graph", "INT8 everywhere", "INT8 dynamic, per channel", "smaller", "smaller graph"} <= set(names)
    assert found["chosen"] != "original"
    assert any(note.startswith("FP16: skipped") for note in found["notes"])
    proto = onnx.load(folder / "model.onnx")
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["inferd.labels"])
    assert json.loads(metadata["inferd.optimisation"])["candidate"] == found["chosen"]
    repository = tmp_path / "repository"
    publish(export, repository, "m")
    assert publish(folder, repository, "m").name == "2"
    with serve(repository) as server, triton.InferenceServerClient(server.address) as client:
        tensor = triton.InferInput("image", [10, 8, 8, 1], "UINT8")
        tensor.set_data_from_numpy(images(10))
        first, second = (
            client.infer("m", [tensor], model_version=version).as_numpy("probabilities") for version in ("", "2")
        )
        assert client.get_model_metadata("m").versions == ["2"]
    assert np.array_equal(first, second)


def test_an_already_quantised_model_is_refused_with_the_reason_in_the_table(tmp_path: Path, rows: Path) -> None:
    optimised = tmp_path / "int8"
    plain = named(classifier())
    ranges = quantise.calibrate(plain, {"image": images(64)}, quantise.Calibration.MIN_MAX)
    write_export(optimised, quantise.static(plain, ranges, quantise.static_nodes(plain)))
    with pytest.raises(OptimiseError, match=r"nothing beats the original .*there was no candidate.*serve the original"):
        optimise(job(tmp_path, optimised, rows))
    assert {entry.name for entry in (tmp_path / "optimised").iterdir()} == {"optimisation.md", "optimisation.png"}
    report, _ = optimise(
        job(tmp_path, write_export(tmp_path / "slow", classifier(detours=12)), rows, also=(optimised,))
    )
    assert any("INT8 already" in note for note in report["optimisation"]["notes"])
    assert "int8" in [candidate["name"] for candidate in report["optimisation"]["candidates"]]


def test_without_calibration_rows_static_int8_is_skipped_and_said(tmp_path: Path, rows: Path) -> None:
    export = write_export(tmp_path / "export", classifier(detours=12))
    smaller = write_export(tmp_path / "smaller", classifier())
    report, _ = optimise(job(tmp_path, export, rows, calibration=None, also=(smaller,)))
    assert any("no calibration rows" in note for note in report["optimisation"]["notes"])
    assert "INT8 everywhere" not in [candidate["name"] for candidate in report["optimisation"]["candidates"]]


def test_what_is_refused_before_any_work(tmp_path: Path, rows: Path) -> None:
    export = write_export(tmp_path / "export", classifier())
    with pytest.raises(ModelError, match="finite number from 0"):
        optimise(job(tmp_path, export, rows, max_drop_points=float("nan")))
    with pytest.raises(OptimiseError, match=r"lacks model\.onnx, so nothing verified is there: run `inferd export`"):
        optimise(job(tmp_path, tmp_path / "nothing", rows))
    with pytest.raises(OptimiseError, match="--calibration came without --evaluation"):
        optimise(job(tmp_path, export, rows, evaluation=None))
    (tmp_path / "optimised").mkdir()
    (tmp_path / "optimised" / "thesis.txt").write_text("mine")
    with pytest.raises(OptimiseError, match="holds other files"):
        optimise(job(tmp_path, export, rows))
    assert (tmp_path / "optimised" / "thesis.txt").read_text() == "mine"


def test_a_file_that_is_not_the_one_reported_on_is_refused(tmp_path: Path, rows: Path) -> None:
    export = write_export(tmp_path / "export", classifier())
    onnx.save(classifier(seed=5), export / "model.onnx")
    with pytest.raises(VerificationError, match="is not the file that was verified"):
        optimise(job(tmp_path, export, rows))


def test_a_successor_of_another_shape_is_refused(tmp_path: Path, rows: Path) -> None:
    export = write_export(tmp_path / "export", classifier())
    other = classifier()
    other.graph.output[0].name = "answer"
    other.graph.node[-1].output[0] = "answer"
    also = write_export(tmp_path / "other", other)
    with pytest.raises(OptimiseError, match="has the outputs answer, which are not the original's probabilities"):
        optimise(job(tmp_path, export, rows, also=(also,)))


def outside(export: Path) -> Path:
    """Has the export's weights lie in a file beside the model."""
    weights.save(onnx.load(export / "model.onnx"), export / "model.onnx", external_from=1)
    document = json.loads((export / "report.json").read_text())
    document["model"]["sha256"] = sha256(export / "model.onnx")
    document["model"]["weights"] = {"model.onnx.data": {"sha256": sha256(export / "model.onnx.data")}}
    (export / "report.json").write_text(json.dumps(document))
    return export


def test_weights_that_lie_outside_are_taken_in_and_too_many_are_refused(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = outside(write_export(tmp_path / "export", classifier(detours=12)))
    report, _ = optimise(job(tmp_path, export, rows))
    assert report["model"]["weights"] == {}
    assert publish(tmp_path / "optimised", tmp_path / "repository", "m").name == "1"
    monkeypatch.setattr("inferd_training.optimise.pipeline.EXTERNAL_FROM", 1000)
    with pytest.raises(OptimiseError, match="bytes of weights in other files, where less than 1000 were expected"):
        optimise(job(tmp_path, export, rows))
