"""The GPU benchmark: its report, and what it says where there is no GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from benchmarks import gpu
from benchmarks.gpu import GpuResults
from benchmarks.gpu_limit import DeviceLimit
from benchmarks.gpu_server import Held, OneOrMany, Served


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this runtime has CUDA")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    assert gpu.main(["--device", device, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith(f"nothing was measured: --device {device} expects")
    assert not (tmp_path / "out").exists()


def test_the_report_holds_what_is_served_against_the_limit() -> None:
    held = [Held(turn, (100 + turn) << 20, None if turn == 4 else 50 << 20) for turn in (1, 2, 3, 4)]
    results = GpuResults(
        "cuda",
        "NVIDIA Test",
        [DeviceLimit(1, 1000.0, 900.0, "graphs"), DeviceLimit(2, 2000.0, 950.0, "bound")],
        [Served(1, 500.0), Served(2, 1900.0)],
        [OneOrMany(64, 1.5, 20.25)],
        held,
    )
    text = gpu.markdown(results)
    assert "# inferd on cuda: NVIDIA Test" in text
    assert "| 1 | 1,000 | 900 | graphs | 500 | 0.50 |" in text
    assert "| 2 | 2,000 | 950 | bound | 1,900 | 0.95 |" in text
    assert "| 64 | 1.50 | 20.25 |" in text
    assert "| host | 102 | 104 |" in text
    assert "Shares above 1" not in text
    assert "Shares above 1" in gpu.markdown(replace(results, served=[Served(1, 1001.0), Served(2, 1.0)]))
    # A figure that is missing once is not made up.
    assert "| GPU |" not in text


@pytest.mark.parametrize(
    "arguments", [["--turns", "1"], ["--seconds", "0"], ["--seconds", "nan"], ["--most-rows", "3"]]
)
def test_settings_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([*arguments, "--device", "cpu"])
    assert "expects" in capsys.readouterr().err or arguments[0] == "--most-rows"
