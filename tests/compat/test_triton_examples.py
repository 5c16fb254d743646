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


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != SHARED))
def test_it_passes(server: ServerProcess, name: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--url", server.address], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert ended.stdout == "PASS\n"


def test_one_that_does_not_pass_says_why() -> None:
    """So that PASS means something."""
    program = "import simple; simple.expect(1 > 2, 'one is more than two'); simple.passed()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=EXAMPLES)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "FAIL: expected that one is more than two\n")
