"""Builds the image, serves a model from a mounted repository, checks an answer, stops it: `make image-test`.

With docker, podman, or with buildah and no engine at all (see deploy/image.sh); prints the size of the image.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from inferd_client import Client  # noqa: E402
from support import models  # noqa: E402 - beside the tests, which are no package

SCRIPT = ROOT / "deploy" / "image.sh"
MAX_CPU_IMAGE_BYTES = 600 * 1024 * 1024
START_SECONDS = 60.0
STOP_SECONDS = 40.0
MIB = 1024 * 1024


def main() -> int:
    subprocess.run([SCRIPT, "build"], check=True)
    size = int(subprocess.run([SCRIPT, "size"], check=True, capture_output=True, text=True).stdout)
    print(f"image: {size / MIB:.0f} MiB unpacked")
    if os.environ.get("EXTRA", "server") == "server" and size > MAX_CPU_IMAGE_BYTES:
        raise SystemExit(f"the CPU image is expected to have at most {MAX_CPU_IMAGE_BYTES / MIB:.0f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        repository.chmod(0o755)  # the server in the image is another user
        models.write(repository, "classifier", models.classifier())
        port = _free_port()
        server = subprocess.Popen([SCRIPT, "run", str(repository), str(port)], start_new_session=True)
        try:
            _check_answer(f"127.0.0.1:{port}", server)
            server.send_signal(signal.SIGTERM)
            status = server.wait(STOP_SECONDS)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    if status != 0:
        raise SystemExit(f"on SIGTERM the server is expected to end with status 0, and ended with {status}")
    print("the image serves, answers and stops as it should")
    return 0


def _check_answer(address: str, server: subprocess.Popen[bytes]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    ends = time.monotonic() + START_SECONDS
    with Client(address) as client:
        while not client.server_ready(timeout=1.0):
            if server.poll() is not None:
                raise SystemExit(f"the server in the image ended with status {server.returncode}")
            if time.monotonic() > ends:
                raise SystemExit(f"the server in the image is not ready after {START_SECONDS:.0f} s")
        answer = client.infer("classifier", {"image": images})["probabilities"]
    np.testing.assert_allclose(answer, models.classify(images), rtol=1e-5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
