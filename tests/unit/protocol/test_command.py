from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from inferd_protocol import command
from inferd_protocol.command import Command, CommandError, main

FAIL: dict[str, BaseException] = {}


def _run(arguments: argparse.Namespace) -> int:
    if arguments.how in FAIL:
        raise FAIL[arguments.how]
    return 7


PROBE = Command("probes", lambda parser: parser.add_argument("how"), _run, needs="probing")


@pytest.fixture(autouse=True)
def only_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("probe", f"{__name__}:PROBE", command.GROUP)
    monkeypatch.setattr(command, "entry_points", lambda group: EntryPoints([entry]))
    monkeypatch.setitem(FAIL, "mistake", CommandError("expected this, got that", 2))
    monkeypatch.setitem(FAIL, "missing", ModuleNotFoundError("no", name="probe_library"))
    monkeypatch.setitem(FAIL, "defect", ModuleNotFoundError("no", name="inferd_server.nothing"))
    monkeypatch.setitem(FAIL, "interrupt", KeyboardInterrupt())


def test_the_status_of_a_command_is_the_status_of_the_process() -> None:
    assert main(["probe", "well"]) == 7


def test_a_users_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "mistake"]) == 2
    assert capsys.readouterr().err == "inferd probe: expected this, got that\n"


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "missing"]) == 1
    assert "pip install 'inferd[probing]'" in capsys.readouterr().err


def test_a_missing_module_of_our_own_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError):
        main(["probe", "defect"])


def test_an_interrupt_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "interrupt"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_help_names_every_command_and_is_quick() -> None:
    # The quickest of three: the bound is on the work, not on what else the machine is doing.
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        ended = subprocess.run([sys.executable, "-m", "inferd_protocol", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
        assert ended.returncode == 0, ended.stderr
    for name in ("serve", "infer", "score", "train", "evaluate", "export", "verify", "publish"):
        assert f"    {name} " in ended.stdout
    assert min(seconds) < 0.3
