"""The peers' environments: one each, from its requirements file, made once and kept."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.process import Failed

PEERS = Path(__file__).parent / "peers"
_INSTALL_SECONDS = 1200.0
_DONE = ".installed"


def interpreter(name: str, cache: Path) -> Path:
    """The Python of a peer's environment, which is made where it is missing. Raises Failed where that fails."""
    requirements = PEERS / f"requirements-{name}.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    # Absolute, and not resolved: the link is what makes it the environment's Python.
    folder = (cache / f"{name}-{digest}").absolute()
    python = folder / "bin" / "python"
    if (folder / _DONE).exists():
        return python
    print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)])
    (folder / _DONE).touch()
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"its installation did not end within {_INSTALL_SECONDS:g} s") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise Failed(f"its installation failed: {' '.join(lines)[:400]}")
