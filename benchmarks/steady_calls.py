"""Open-loop gRPC calls whose every answer is looked at: whether it came, and that one version alone made it.

`benchmarks.open_loop` is a sharper clock, and looks at sizes only. `python -m benchmarks.steady_calls <settings as
JSON>` prints JSON. The model answers, beside its probabilities, the number of the version that its file was written as.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import numpy as np
from inferd_protocol.grpc_service_pb2 import ModelInferResponse

from benchmarks.payload import PATH

_CONNECTIONS = 4
_CALL_SECONDS = 20.0


@dataclass(slots=True)
class Calls:
    """What came of the calls. Latencies in us from when each was due; `versions` counts answers by version."""

    rate: float
    requests: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    p999_us: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    mixed: int = 0
    """Answers whose version is not that of the file which made them."""
    versions: dict[str, int] = field(default_factory=dict)


async def closed_loop(address: str, bodies: list[bytes], in_flight: int, seconds: float) -> float:
    """Answers a second with so many calls under way at any time."""
    async with _Channels(address) as channels:
        ends = time.perf_counter() + seconds
        answered = 0

        async def one(number: int) -> None:
            nonlocal answered
            while time.perf_counter() < ends:
                await channels.call(number, bodies[number % len(bodies)])
                answered += 1

        await asyncio.gather(*(one(number) for number in range(in_flight)))
        return answered / seconds


async def open_loop(address: str, bodies: list[bytes], rate: float, seconds: float) -> Calls:
    """`rate` calls a second, the bodies in turn."""
    found = Calls(rate)
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    async with _Channels(address) as channels:
        begin = time.perf_counter() + 0.1
        running: set[asyncio.Task[None]] = set()

        async def one(number: int) -> None:
            try:
                message = await channels.call(number, bodies[number % len(bodies)])
            except grpc.aio.AioRpcError as error:
                failures[f"{error.code().name}: {error.details()}"] += 1
            else:
                answer = ModelInferResponse.FromString(message)
                versions[answer.model_version] += 1
                (release,) = np.frombuffer(answer.raw_output_contents[1], np.float32)
                found.mixed += int(float(answer.model_version) != release)
            latencies.append(time.perf_counter() - begin - number / rate)

        total = round(rate * seconds)
        while found.requests < total:
            due = min(total, int((time.perf_counter() - begin) * rate) + 1)
            for number in range(found.requests, due):
                task = asyncio.create_task(one(number))
                running.add(task)
                task.add_done_callback(running.discard)
            found.requests = max(found.requests, due)
            await asyncio.sleep(max(0.0, begin + found.requests / rate - time.perf_counter()))
        await asyncio.gather(*running)
    p50, p99, p999 = np.percentile(latencies, (50, 99, 99.9)) * 1e6
    found.p50_us, found.p99_us, found.p999_us = float(p50), float(p99), float(p999)
    found.failures, found.versions = dict(failures), dict(versions)
    return found


class _Channels:
    def __init__(self, address: str) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        self._channels = [grpc.aio.insecure_channel(address, options) for _ in range(_CONNECTIONS)]
        self._calls: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(PATH) for channel in self._channels
        ]

    async def call(self, number: int, body: bytes) -> bytes:
        return await self._calls[number % _CONNECTIONS](body, timeout=_CALL_SECONDS)

    async def __aenter__(self) -> _Channels:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            await channel.close()


def _main() -> None:
    settings = json.loads(sys.argv[1])
    address, seconds = settings["address"], settings["seconds"]
    bodies = [Path(path).read_bytes() for path in settings["bodies"]]
    if "rate" in settings:
        print(json.dumps(asdict(asyncio.run(open_loop(address, bodies, settings["rate"], seconds)))))
    else:
        print(json.dumps(asyncio.run(closed_loop(address, bodies, settings["in_flight"], seconds))))


if __name__ == "__main__":
    _main()
