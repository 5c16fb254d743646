"""`inferd optimize` as it is typed: the table, the files, and one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from inferd_protocol.command import main
from inferd_training.optimise import quantise
from inferd_training.optimise.variants import named
from optimise_models import classifier, images, write_export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports: `slow`, one that answers alike with less work, `quick`, one in INT8 already, `int8`; and `rows.npz`."""
    folder = tmp_path_factory.mktemp("optimize")
    write_export(folder / "slow", classifier(detours=12))
    write_export(folder / "quick", classifier())
    plain = named(classifier())
    ranges = quantise.calibrate(plain, {"image": images(64)}, quantise.Calibration.MIN_MAX)
    write_export(folder / "int8", quantise.static(plain, ranges, quantise.static_nodes(plain)))
    np.savez(folder / "rows.npz", image=images(1500))
    return folder


Optimize = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def optimize(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> Optimize:
    """Runs the command on an export; gives its status, its output and the lines of its errors."""

    def run(*arguments: object, export: str = "slow") -> tuple[int, str, list[str]]:
        capsys.readouterr()
        rows = ["--evaluation", folder / "rows.npz", "--calibration", folder / "rows.npz", "--search-seconds", 0.2]
        given = ["optimize", folder / export, "--output", tmp_path / "out", *rows, *arguments]
        try:
            status = main([str(argument) for argument in given])
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err.splitlines()

    return run


def test_it_is_published_and_its_runtime_graph_can_be_looked_at(
    optimize: Optimize, folder: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "runtime.onnx"
    places = ["--repository", tmp_path / "models", "--name", "m", "--runtime-graph", graph]
    status, out, _ = optimize("--also", folder / "quick", "--max-accuracy-drop", 50, *places)
    assert status == 0
    assert "| candidate | size |" in out
    assert "| **chosen** |" in out
    assert f"wrote {graph}" in out
    assert f"published {tmp_path / 'models' / 'm' / '1'}" in out
    assert (tmp_path / "models" / "m" / "1" / "model.onnx").read_bytes() == (
        tmp_path / "out" / "model.onnx"
    ).read_bytes()
    assert onnx.load(graph).graph.node


def test_where_nothing_is_better_the_original_stays(optimize: Optimize, tmp_path: Path) -> None:
    status, out, errors = optimize(export="int8")
    assert (status, out) == (1, "")
    assert errors[-1].startswith("inferd optimize: nothing beats the original")
    assert "there was no candidate: the model is INT8 already (DequantizeLinear, QuantizeLinear)" in errors[-1]
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repository", "{tmp}"], "--repository and --name belong together"),
        (["--threads", "0"], "--threads expects at least 1, got 0"),
        (["--min-agreement", "2"], "--min-agreement expects a share from 0 to 1, got 2.0"),
        (["--min-agreement", "nan"], "--min-agreement expects a share from 0 to 1, got nan"),
        (["--search-seconds", "0"], "--search-seconds expects more than 0, got 0.0"),
        (["--search-seconds", "nan"], "--search-seconds expects more than 0, got nan"),
        (["--runtime-graph", "{tmp}"], "--runtime-graph expects a file to write"),
        (["--max-accuracy-drop", "-1"], "an accuracy drop of -1.0 points was allowed"),
        (["--output", "{export}"], "is an export that is looked at: give another folder for the outcome"),
        (["--also", "{tmp}", "--output", "{tmp}"], "is an export that is looked at"),
        (["--also", "{tmp}"], "lacks model.onnx"),
        (["--evaluation", "{tmp}/none.npz"], "none.npz cannot be read as a .npz file of arrays"),
        (["--calibration", "{tmp}/none.npz"], "none.npz cannot be read as a .npz file of arrays"),
    ],
)
def test_mistakes_are_one_sentence(
    optimize: Optimize, folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"tmp": tmp_path, "export": folder / "slow"}
    status, out, errors = optimize(*(argument.format(**places) for argument in arguments))
    assert status != 0
    assert not out
    assert message in errors[-1]
    assert not any("Traceback" in line for line in errors)
    assert not (tmp_path / "out").exists()
    assert (folder / "slow" / "model.onnx").is_file()
