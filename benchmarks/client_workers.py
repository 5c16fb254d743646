"""One measured client in a process of its own, so that CPU time and page faults are its own.

Started by clients.py beside it, which talks to it by lines: in goes a number of calls, out comes what they took, as
JSON. The first line out says that the client has made its first call and is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """What is asked of every client: the same array, to the same model, over and over."""

    target: str
    model: str
    input: str
    output: str
    datatype: str
    rows: np.ndarray[Any, Any]

    def message(self) -> Any:
        """The request as protobuf builds it."""
        from inferd_protocol import grpc_service_pb2 as pb

        message = pb.ModelInferRequest(model_name=self.model)
        message.inputs.add(name=self.input, datatype=self.datatype, shape=self.rows.shape)
        message.outputs.add(name=self.output)
        message.raw_input_contents.append(self.rows.tobytes())
        return message


Call = Callable[[], object]
AsyncCall = Callable[[], Awaitable[object]]


def inferd(work: Work) -> Call:
    """The blocking client of this repository."""
    from inferd_client import Client

    client = Client(work.target)
    return lambda: client.infer(work.model, {work.input: work.rows}, outputs=[work.output])[work.output]


def triton(work: Work) -> Call:
    """tritonclient.grpc. It may keep its description of the input and output, which its users often make anew."""
    from tritonclient import grpc as triton  # type: ignore[import-untyped]

    client = triton.InferenceServerClient(work.target)
    tensor = triton.InferInput(work.input, work.rows.shape, work.datatype)
    outputs = [triton.InferRequestedOutput(work.output)]

    def call() -> object:
        tensor.set_data_from_numpy(work.rows)
        return client.infer(work.model, [tensor], outputs=outputs).as_numpy(work.output)

    return call


def stub(work: Work) -> Call:
    """A bare gRPC stub with protobuf messages, and numpy around them."""
    import grpc
    from inferd_protocol.methods import METHODS

    method = METHODS["ModelInfer"]
    send: Any = grpc.insecure_channel(work.target).unary_unary(
        method.path, method.request.SerializeToString, method.response.FromString
    )
    return lambda: _array(send(work.message()))


def stub_bytes(work: Work) -> Call:
    """A bare gRPC stub that is sent bytes which were serialised beforehand, and whose answer nobody parses."""
    import grpc
    from inferd_protocol.methods import METHODS

    request = work.message().SerializeToString()
    send: Any = grpc.insecure_channel(work.target).unary_unary(METHODS["ModelInfer"].path)
    return lambda: send(request)


def inferd_aio(work: Work) -> AsyncCall:
    """The awaiting client of this repository."""
    from inferd_client import AsyncClient

    client = AsyncClient(work.target)

    async def call() -> object:
        return (await client.infer(work.model, {work.input: work.rows}, outputs=[work.output]))[work.output]

    return call


def triton_aio(work: Work) -> AsyncCall:
    """tritonclient.grpc.aio, as above."""
    from tritonclient import grpc as triton
    from tritonclient.grpc import aio  # type: ignore[import-untyped]

    client = aio.InferenceServerClient(work.target)
    outputs = [triton.InferRequestedOutput(work.output)]
    tensor = triton.InferInput(work.input, work.rows.shape, work.datatype)

    async def call() -> object:
        # One input for all that are in flight: it is read before the first await.
        tensor.set_data_from_numpy(work.rows)
        return (await client.infer(work.model, [tensor], outputs=outputs)).as_numpy(work.output)

    return call


def stub_aio(work: Work) -> AsyncCall:
    """A bare grpc.aio stub with protobuf messages, and numpy around them."""
    import grpc.aio
    from inferd_protocol.methods import METHODS

    method = METHODS["ModelInfer"]
    send: Any = grpc.aio.insecure_channel(work.target).unary_unary(
        method.path, method.request.SerializeToString, method.response.FromString
    )

    async def call() -> object:
        return _array(await send(work.message()))

    return call


def stub_bytes_aio(work: Work) -> AsyncCall:
    """A bare grpc.aio stub with bytes that were serialised beforehand."""
    import grpc.aio
    from inferd_protocol.methods import METHODS

    request = work.message().SerializeToString()
    send: Any = grpc.aio.insecure_channel(work.target).unary_unary(METHODS["ModelInfer"].path)

    async def call() -> object:
        return await send(request)

    return call


BLOCKING: dict[str, Callable[[Work], Call]] = {
    "inferd": inferd,
    "tritonclient": triton,
    "stub": stub,
    "stub-bytes": stub_bytes,
}
AWAITING: dict[str, Callable[[Work], AsyncCall]] = {
    "inferd-aio": inferd_aio,
    "tritonclient-aio": triton_aio,
    "stub-aio": stub_aio,
    "stub-bytes-aio": stub_bytes_aio,
}


def _array(response: Any) -> object:
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(tuple(response.outputs[0].shape))


async def _in_flight(call: AsyncCall, calls: int, in_flight: int) -> None:
    left = calls

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))


def _loop(call: Call, calls: int) -> None:
    for _ in range(calls):
        call()


def _serve(measured: Callable[[int], None]) -> None:
    measured(1)
    print("ready", flush=True)
    for line in sys.stdin:
        calls = int(line)
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        measured(calls)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        took = {
            "cpu_us": 1e6 * cpu / calls,
            "faults": (after.ru_minflt - before.ru_minflt) / calls,
            "wall_us": 1e6 * seconds / calls,
        }
        print(json.dumps(took), flush=True)


def main() -> None:
    """Makes the client and answers the lines on standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*BLOCKING, *AWAITING])
    parser.add_argument("--target", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--datatype", required=True, choices=["UINT8", "FP32"], help="the input's")
    parser.add_argument("--shape", required=True, help="rows first, as 64,28,28,1")
    parser.add_argument("--in-flight", type=int, default=1)
    arguments = parser.parse_args()
    shape = [int(size) for size in arguments.shape.split(",")]
    rows = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if arguments.datatype == "FP32":
        rows = rows.astype(np.float32)
    work = Work(arguments.target, arguments.model, arguments.input, arguments.output, arguments.datatype, rows)
    if arguments.kind in BLOCKING:
        blocking = BLOCKING[arguments.kind](work)
        _serve(lambda calls: _loop(blocking, calls))
    else:
        with asyncio.Runner() as runner:

            async def make() -> AsyncCall:
                return AWAITING[arguments.kind](work)

            awaiting = runner.run(make())
            _serve(lambda calls: runner.run(_in_flight(awaiting, calls, arguments.in_flight)))


if __name__ == "__main__":
    main()
