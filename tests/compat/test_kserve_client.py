"""KServe's own client against a real server.

Its environment is 480 MB and contradicts the pinned one, so it is not here: `KSERVE_PYTHON` names a Python that has it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.server import ServerProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "kserve" / "grpc_client.py"
PYTHON = os.environ.get("KSERVE_PYTHON") or (sys.executable if importlib.util.find_spec("kserve") else "")


@pytest.mark.skipif(not PYTHON, reason="kserve is not installed: set KSERVE_PYTHON to a Python that has it")
def test_readiness_inference_load_and_unload(server: ServerProcess) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        [PYTHON, str(EXAMPLE), "--url", server.address], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (ended.returncode, ended.stdout) == (0, "PASS\n"), ended.stderr
