"""Writes MLServer's settings into a folder and becomes `mlserver start`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import onnx_model


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--parallel-workers", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=0, help="requests; 0: no batching")
    parser.add_argument("--max-batch-time", type=float, default=0.0, help="seconds")
    arguments = parser.parse_args()
    settings = {
        "host": "127.0.0.1",
        "grpc_port": arguments.port,
        "http_port": arguments.http_port,
        "metrics_port": arguments.metrics_port,
        "parallel_workers": arguments.parallel_workers,
        "debug": False,
        "grpc_max_message_length": 64 * 1024 * 1024,
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "settings.json").write_text(json.dumps(settings))
    for name in onnx_model.MODELS.values():
        model = {"name": name, "implementation": "mlserver_runtime.Cnn"}
        if arguments.max_batch_size:
            model |= {"max_batch_size": arguments.max_batch_size, "max_batch_time": arguments.max_batch_time}
        folder = arguments.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "model-settings.json").write_text(json.dumps(model))
    # The runtime is imported by its name, by the server and by its workers.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    start = "from mlserver.cli import main; main()"
    os.execv(sys.executable, [sys.executable, "-c", start, "start", str(arguments.folder)])


if __name__ == "__main__":
    _main()
