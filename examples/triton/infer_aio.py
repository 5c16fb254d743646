"""Requests with asyncio, several in flight at the same time."""

import asyncio

import simple
import tritonclient.grpc.aio as grpcclient


async def main(url: str) -> None:
    async with grpcclient.InferenceServerClient(url) as client:
        simple.expect(await client.is_server_ready(), "the server is ready")
        arrays = [simple.A + number for number in range(20)]
        results = await asyncio.gather(
            *(client.infer(simple.MODEL, simple.inputs(array, kind=grpcclient.InferInput)) for array in arrays)
        )
        for array, result in zip(arrays, results, strict=True):
            simple.check(result, array)


asyncio.run(main(simple.arguments(__doc__).url))
simple.passed()
