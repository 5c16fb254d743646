"""Whether reloads are noticed: `python -m benchmarks.reloads --seconds 600`.

A server under explicit control answers one-row requests of the reference CNN at four fifths of the peak that it and
the generator reach, first left alone, then with something done to its repository every second: a version is published
and loaded, a corrupt one is refused, a file is torn in place, the newest version is rolled back, the label `stable`
moves, another model is loaded and unloaded. Half of the requests call the latest version, half the label. No request
may fail, each answer must be of one version, the 99th percentile may at most double, and memory must not grow. Exit
status 1 where any of that is not.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.methods import METHODS
from onnx import TensorProto, helper, numpy_helper

from benchmarks import model, servers
from benchmarks.payload import Payloads, Shape
from benchmarks.process import Failed, Started
from benchmarks.scenarios import growth
from benchmarks.steady_calls import Calls

_MODEL, _OTHER, _LABEL = model.MODELS["FP32"], "visitor", "stable"
_MARK = np.float32(-8723194.5)
_SHARE = 0.8
_IN_FLIGHT = 32
_PEAK_SECONDS = 4.0
_STEP = 0.9
_LATE_US = 5_000
"""A 99th percentile beyond which requests wait for each other and not for their turn."""
_LOAD_SECONDS = 60.0
_START_SECONDS = 60.0
_MOST_GROWTH = 0.1
"""Of the memory held: the C library keeps what was freed in pieces, up to a bound."""


class Chaos:
    """What is done to the repository: a list of acts, one at a time, each of which leaves the model callable."""

    def __init__(self, repository: Path, address: str) -> None:
        self._repository = repository
        self._folder = repository / _MODEL
        self._channel = grpc.insecure_channel(address)
        self._newest = 1
        self.done: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.acts: list[Callable[[], None]] = [
            self.publish,
            self.visit,
            self.corrupt,
            self.relabel,
            self.publish,
            self.tear,
            self.roll_back,
            self.leave,
        ]

    def publish(self) -> None:
        """A new version, loaded."""
        self._newest += 1
        write(self._repository, self._newest)
        self._expect(self._load(_MODEL), "OK")

    def corrupt(self) -> None:
        """A newer version that is no model: refused, and taken away."""
        folder = self._folder / str(self._newest + 1)
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"torn")
        self._expect(self._load(_MODEL), "INTERNAL")
        shutil.rmtree(folder)
        self._expect(self._load(_MODEL), "OK")

    def tear(self) -> None:
        """The newest version's file is overwritten by half of itself: not taken, and put right."""
        file = self._folder / str(self._newest) / "model.onnx"
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        self._expect(self._load(_MODEL), "INTERNAL")
        file.write_bytes(content)
        self._expect(self._load(_MODEL), "OK")

    def roll_back(self) -> None:
        """The newest version is withdrawn: the one before serves again."""
        older = [int(folder.name) for folder in self._folder.iterdir() if int(folder.name) != self._newest]
        if older:
            shutil.rmtree(self._folder / str(self._newest))
            self._newest = max(older)
            self._expect(self._load(_MODEL), "OK")

    def relabel(self) -> None:
        """The label moves to the newest version; versions that nobody calls any more go."""
        self._expect(self._label(self._newest), "OK")
        for folder in self._folder.iterdir():
            if int(folder.name) < self._newest - 1:
                shutil.rmtree(folder)
        self._expect(self._load(_MODEL), "OK")

    def visit(self) -> None:
        """Another model is loaded."""
        self._expect(self._load(_OTHER), "OK")

    def leave(self) -> None:
        """The other model is unloaded."""
        request = pb.RepositoryModelUnloadRequest(model_name=_OTHER)
        self._expect(self._call("RepositoryModelUnload", request), "OK")

    def begin(self) -> None:
        """The label that half of the requests call."""
        self._expect(self._label(1), "OK")

    def _load(self, name: str) -> str:
        return self._call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name=name))

    def _label(self, version: int) -> str:
        request = pb.RepositoryModelLoadRequest(model_name=_MODEL)
        request.parameters[f"label:{_LABEL}"].int64_param = version
        return self._call("RepositoryModelLoad", request)

    def _call(self, method: str, request: Any) -> str:
        call: grpc.UnaryUnaryMultiCallable[Any, bytes] = self._channel.unary_unary(
            METHODS[method].path, type(request).SerializeToString
        )
        try:
            call(request, timeout=_LOAD_SECONDS)
        except grpc.RpcError as error:
            self._why = str(error.details())
            return str(error.code().name)
        self._why = ""
        return "OK"

    def _expect(self, code: str, expected: str) -> None:
        if code != expected:
            self.unexpected.append(f"{code} instead of {expected}: {self._why}")


def write(repository: Path, version: int, name: str = _MODEL) -> None:
    """Publishes the reference CNN with an output beside that says `version`."""
    content = _template(repository.parent / "repository" / _MODEL / "1" / "model.onnx")
    aside = repository / f".{name}-{version}"
    aside.mkdir(parents=True)
    (aside / "model.onnx").write_bytes(content.replace(_MARK.tobytes(), np.float32(version).tobytes()))
    (repository / name).mkdir(exist_ok=True)
    aside.rename(repository / name / str(version))


@functools.cache
def _template(path: Path) -> bytes:
    """The model with `_MARK` for its version: made once, because who publishes should not compete with who serves."""
    made = onnx.load(path)
    made.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(_MARK), "release_number"),
            numpy_helper.from_array(np.array(0, np.float32), "nought"),
        ]
    )
    made.graph.node.extend(
        [
            helper.make_node("ReduceMax", [model.OUTPUT], ["most"], axes=[1], keepdims=1),
            helper.make_node("Mul", ["most", "nought"], ["nothing"]),
            helper.make_node("Add", ["nothing", "release_number"], ["release"]),
        ]
    )
    made.graph.output.append(helper.make_tensor_value_info("release", TensorProto.FLOAT, ["batch", 1]))
    content = made.SerializeToString()
    if content.count(_MARK.tobytes()) != 1:
        raise Failed("the mark of the version is not in the model once")
    return content


def run(folder: Path, calm: float, seconds: float, transport: str) -> dict[str, Any]:
    """The whole of it. Raises Failed where the server does not start, or a load is answered wrongly."""
    model.write_repository(folder / "repository")
    repository = folder / "repository-reloads"
    shutil.rmtree(repository, ignore_errors=True)
    write(repository, 1)
    write(repository, 1, _OTHER)
    port = servers.free_port()
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "inferd_protocol", "serve", "--model-repository", str(repository)]
    command += [
        "--grpc-port",
        str(port),
        "--transport",
        transport,
        "--intra-op-threads",
        "1",
        "--log-level",
        "error",
        "--metrics-port",
        "off",
    ]
    command += ["--model-control-mode", "explicit", "--load-model", _MODEL]
    payloads = Payloads(folder / "payloads", repository)
    bodies = []
    for version in ("", _LABEL):
        request = pb.ModelInferRequest.FromString(payloads.message(Shape("FP32", 1)))
        request.model_version = version
        body = folder / "payloads" / f"reloads-{version or 'latest'}.bin"
        body.write_bytes(request.SerializeToString())
        bodies.append(str(body))
    with Started(command, folder / "logs" / "reloads.log") as server:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(_START_SECONDS)
            ready = channel.unary_unary(
                METHODS["ModelReady"].path, pb.ModelReadyRequest.SerializeToString, pb.ModelReadyResponse.FromString
            )
            while not ready(pb.ModelReadyRequest(name=_MODEL)).ready:
                server.check()
        chaos = Chaos(repository, address)
        chaos.begin()
        settings = {"address": address, "bodies": bodies}
        peak = _peak(settings)
        rate = _SHARE * peak
        alone = Calls(**_generate({**settings, "rate": rate, "seconds": calm}))
        sizes: list[int] = []
        stop = threading.Event()

        def disturb() -> None:
            # Who publishes is another host, in earnest: here it takes what the others leave of this one.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
            while not stop.wait(1.0):
                act = chaos.acts[sum(chaos.done.values()) % len(chaos.acts)]
                act()
                chaos.done[act.__name__] += 1
                sizes.append(server.resident_bytes())

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            disturbed = Calls(**_generate({**settings, "rate": rate, "seconds": seconds}))
        finally:
            stop.set()
            thread.join()
    return {
        "transport": transport,
        "peak": peak,
        "alone": asdict(alone),
        "disturbed": asdict(disturbed),
        "acts": dict(chaos.done),
        "unexpected": chaos.unexpected,
        "resident_bytes": sizes[-1],
        "growth_bytes": growth(sizes) if len(sizes) >= 10 else None,
    }


def _peak(settings: dict[str, Any]) -> float:
    """The most requests a second that the server answers and the generator sends on these cores, both on schedule.

    Sought downwards from what a closed loop gives, which costs the generator less.
    """
    rate = float(_generate({**settings, "in_flight": _IN_FLIGHT, "seconds": _PEAK_SECONDS}))
    while True:
        calls = Calls(**_generate({**settings, "rate": rate, "seconds": _PEAK_SECONDS}))
        if not calls.failures and calls.p99_us < _LATE_US:
            return rate
        rate *= _STEP


def _generate(settings: dict[str, Any]) -> Any:
    command = [sys.executable, "-m", "benchmarks.steady_calls", json.dumps(settings)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Failed((ended.stderr.strip().splitlines() or ["the generator gave no reason"])[-1])
    return json.loads(ended.stdout)


def verdicts(found: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """By what was asked: the figure, and whether it is met."""
    alone, disturbed = Calls(**found["alone"]), Calls(**found["disturbed"])
    ratio = disturbed.p99_us / alone.p99_us
    failures = sum(disturbed.failures.values())
    grown = found["growth_bytes"]
    return {
        "requests that failed": (f"{failures} of {disturbed.requests} {disturbed.failures or ''}", not failures),
        "answers not of one version": (str(disturbed.mixed), not disturbed.mixed),
        "acts that went otherwise": (
            f"{len(found['unexpected'])} {found['unexpected'][:3] or ''}",
            not found["unexpected"],
        ),
        "p99 against that without reloads": (
            f"{ratio:.2f}x ({disturbed.p99_us:.0f} / {alone.p99_us:.0f} us)",
            ratio <= 2,
        ),
        "growth of memory": (
            "too short to say" if grown is None else f"{grown / 1e6:.1f} of {found['resident_bytes'] / 1e6:.0f} MB",
            grown is None or grown <= _MOST_GROWTH * found["resident_bytes"],
        ),
    }


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reloads", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of load with reloads; 600 for a soak")
    parser.add_argument("--calm", type=float, default=30.0, help="seconds of the same load without")
    parser.add_argument("--transport", default="auto", help="as of `inferd serve`")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where everything is kept")
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        found = run(arguments.folder, arguments.calm, arguments.seconds, arguments.transport)
    except Failed as error:
        print(f"reloads: {error}", file=sys.stderr)
        return 1
    (arguments.folder / "reloads.json").write_text(json.dumps(found, indent=1))
    disturbed = found["disturbed"]
    print(
        f"{disturbed['rate']:.0f} requests/s of a peak of {found['peak']:.0f} for {arguments.seconds:g} s, "
        f"transport {found['transport']}"
    )
    print(
        f"acts: {found['acts']}; versions answered: {len(disturbed['versions'])}; took {time.monotonic() - began:.0f} s"
    )
    results = verdicts(found)
    for name, (figure, met) in results.items():
        print(f"{'met    ' if met else 'NOT MET'}  {name}: {figure}")
    return 0 if all(met for _, met in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
