"""Two versions of a model on one server, in turns: `python -m benchmarks.artefacts REPOSITORY NAME`.

One-row requests of the golden samples' first row, 128 in flight, to the oldest version in the folder and to the newest.
Twice: server and load share every CPU, as in the other benchmarks, and each has a CPU of its own, so that the server
alone is busy all the time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from inferd_protocol import golden
from inferd_protocol.artefact import GOLDEN_FILE
from inferd_protocol.datatypes import of_dtype
from inferd_protocol.grpc_service_pb2 import ModelInferRequest
from inferd_protocol.tensors import encode_raw

from benchmarks import load, servers
from benchmarks.load import Load
from benchmarks.payload import Call, grpc_call
from benchmarks.process import Failed, Started
from benchmarks.spread import ratios, spread

IN_FLIGHT = 128


def message(name: str, version: str, samples: golden.Golden) -> bytes:
    """A serialised ModelInferRequest with the first row of the samples."""
    request = ModelInferRequest(model_name=name, model_version=version)
    for given, array in samples.inputs.items():
        row = array[:1]
        datatype = of_dtype(row.dtype)
        # Golden samples are of booleans and numbers.
        assert datatype is not None
        request.inputs.add(name=given, datatype=datatype.name, shape=row.shape)
        request.raw_input_contents.append(encode_raw(row, datatype))
    return request.SerializeToString()


def main() -> int:
    """Prints a line for each way to share the CPUs. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.artefacts", description=__doc__.partition("\n")[0])
    parser.add_argument("repository", type=Path, help="a model repository, such as optimise-output/cnn/repository")
    parser.add_argument("name", help="the model's name in it, such as cnn")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        load.require_h2load()
        with tempfile.TemporaryDirectory(prefix="inferd-artefacts-") as folder:
            versions = _copy(arguments.repository / arguments.name, Path(folder) / "repository" / arguments.name)
            for apart in (False, True):
                _compare(Path(folder), arguments.name, versions, apart, arguments.rounds, arguments.seconds)
    except (Failed, golden.GoldenError) as failure:
        print(f"benchmarks: {failure}", file=sys.stderr)
        return 1
    return 0


def _copy(model: Path, target: Path) -> tuple[str, str]:
    """Copies the oldest and the newest version, both of which are then served. Returns their numbers."""
    numbers = sorted(int(each.name) for each in model.iterdir() if each.name.isdigit()) if model.is_dir() else []
    if len(numbers) < 2:
        raise Failed(f"{model} has {len(numbers)} versions, where two were expected: publish both there")
    versions = str(numbers[0]), str(numbers[-1])
    for version in versions:
        shutil.copytree(model / version, target / version)
    (target / "config.pbtxt").write_text("version_policy { all { } }\n")
    return versions


def _compare(folder: Path, name: str, versions: tuple[str, str], apart: bool, rounds: int, seconds: float) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if apart and len(cpus) < 2:
        raise Failed("server and load cannot have a CPU of their own: there is 1")
    found: dict[str, list[Load]] = {version: [] for version in versions}
    with contextlib.ExitStack() as ends:
        ends.callback(os.sched_setaffinity, 0, cpus)
        # Children inherit it.
        os.sched_setaffinity(0, cpus[:1] if apart else cpus)
        (server, *_), _ = servers.ours(folder / "repository")
        port = servers.free_port()
        process = ends.enter_context(Started(server.command(port), folder / "server.log"))
        os.sched_setaffinity(0, cpus[1:] if apart else cpus)
        calls = {version: _call(folder, process, port, name, version) for version in versions}
        for _ in range(rounds):
            for version, call in calls.items():
                found[version].append(load.closed_loop(call, IN_FLIGHT, seconds, process.cpu_seconds))
    rates = [[each.requests_per_s for each in found[version]] for version in versions]
    texts = []
    for version, measured in zip(versions, rates, strict=True):
        cpu = spread([each.cpu_us_per_request for each in found[version]])
        texts.append(f"version {version}: {spread(measured).text()} requests/s, {cpu.text(1)} us of CPU each")
    gain = spread(ratios(rates[1], rates[0])).text(2)
    print(f"{'a CPU each' if apart else 'shared CPUs'}: {'; '.join(texts)}; gain {gain}x", flush=True)


def _call(folder: Path, process: Started, port: int, name: str, version: str) -> Call:
    samples = golden.read(folder / "repository" / name / version / GOLDEN_FILE)
    request, body = message(name, version, samples), folder / f"{version}.grpc"
    call, _ = servers.await_answer(process, port, lambda: grpc_call(f"127.0.0.1:{port}", request, body))
    return call


if __name__ == "__main__":
    sys.exit(main())
