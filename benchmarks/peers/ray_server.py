"""Ray Serve on this machine alone: starts Ray, serves the deployment, waits."""

from __future__ import annotations

import argparse
import os
import signal
import threading

import ray
import ray_app
from ray import serve
from ray.serve.config import gRPCOptions


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--max-ongoing-requests", type=int, default=0, help="0: Ray's default")
    arguments = parser.parse_args()
    passed = {
        name: os.environ[name] for name in os.environ if name.startswith(("BENCH_", "PYTHONPATH", "INFERD_BENCH"))
    }
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": passed})
    serve.start(
        http_options={"host": "127.0.0.1", "port": arguments.http_port},
        grpc_options=gRPCOptions(port=arguments.port, grpc_servicer_functions=["ray_app.add_servicer"]),
    )
    limits = {"max_ongoing_requests": arguments.max_ongoing_requests} if arguments.max_ongoing_requests else {}
    serve.run(serve.deployment(num_replicas=1, **limits)(ray_app.Cnn).bind(), name="cnn", route_prefix="/")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    _main()
