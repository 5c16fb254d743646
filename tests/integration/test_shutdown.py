"""A server that is told to stop while a load hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from support import models

SECONDS = 60.0

PROGRAM = """
import sys, threading
from inferd_protocol.command import main
from inferd_server.repository.manager import RepositoryManager

def hang(self):
    print("loading", flush=True)
    threading.Event().wait()

RepositoryManager.start = hang
sys.exit(main(sys.argv[1:]))
"""


def test_a_load_that_hangs_does_not_outlive_the_exit_timeout(tmp_path: Path) -> None:
    models.write(tmp_path, "m", models.classifier())
    command = ["serve", "--model-repository", str(tmp_path), "--grpc-port", "0", "--exit-timeout-secs", "0.2"]
    command += ["--metrics-port", "off"]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *command], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
