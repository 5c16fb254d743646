"""examples/triton, each run as its reader would run it, against a real server on both transports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.server import ServerProcess

EXAMPLES = Path(__file__).parents[2] / "examples" / "triton"
SHARED = "simple.py"
"""What the examples import; it is none itself."""
NOT_BUILT = {
    "model_statistics.py",
}
"""Those that need an RPC or a feature that the server does not have yet. Once it has, the test fails: take it out."""


class Unimplemented(AssertionError):
    """The server answered UNIMPLEMENTED, and nothing else went wrong."""


def examples() -> list[object]:
    return [
        pytest.param(path.name, marks=pytest.mark.xfail(strict=True, raises=Unimplemented))
        if path.name in NOT_BUILT
        else path.name
        for path in sorted(EXAMPLES.glob("*.py"))
        if path.name != SHARED
    ]


@pytest.mark.parametrize("name", examples())
def test_it_passes(server: ServerProcess, name: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--url", server.address], capture_output=True, text=True, timeout=120
    )
    said = f"{ended.stdout}\n{ended.stderr}"
    if ended.returncode == 1 and "UNIMPLEMENTED" in said:
        raise Unimplemented(said)
    assert ended.returncode == 0, said
    assert ended.stdout == "PASS\n"


def test_what_is_not_built_is_there() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} >= NOT_BUILT


def test_one_that_does_not_pass_says_why() -> None:
    """So that PASS means something."""
    program = "import simple; simple.expect(1 > 2, 'one is more than two'); simple.passed()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=EXAMPLES)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "FAIL: expected that one is more than two\n")
