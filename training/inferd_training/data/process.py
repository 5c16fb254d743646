"""Runs the package managers' own clients, bounded in time, and says in one line why one failed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from inferd_training.errors import SourceUnavailable


def run(command: Sequence[str], *, folder: Path, timeout: float) -> bytes:
    """Runs `command` in `folder` for at most `timeout` seconds and returns its standard output.

    Raises SourceUnavailable where the program is missing, fails, or takes longer.
    """
    program = Path(command[0]).name
    try:
        process = subprocess.Popen(  # noqa: S603 - fixed programs with arguments of ours, no shell
            list(command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            # A group of its own: a client's children must not outlive the timeout and hold the pipes open.
            start_new_session=True,
        )
    except OSError as error:
        raise SourceUnavailable(f"{program} cannot be run ({error.strerror})") from error
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise SourceUnavailable(f"{program} took longer than {timeout:.0f} s") from error
        raise
    if process.returncode:
        lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1] if lines else "no message"
        raise SourceUnavailable(f"{program} failed with status {process.returncode} ({reason})")
    return output
