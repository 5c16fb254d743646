"""Requests that the client gives up while they run: the server stops working on what nobody waits for."""

import asyncio
import queue

import simple
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient


def callbacks(client: grpcclient.InferenceServerClient) -> None:
    answers: queue.Queue = queue.Queue()
    call = client.async_infer(simple.SLOW, simple.slow_inputs(), lambda result, error: answers.put((result, error)))
    call.cancel()
    result, error = answers.get(timeout=30)
    simple.expect(result is None and error.status() == "StatusCode.CANCELLED", f"the call is cancelled, got {error}")


async def awaiting(url: str) -> None:
    async with aioclient.InferenceServerClient(url) as client:
        task = asyncio.create_task(client.infer(simple.SLOW, simple.slow_inputs(aioclient.InferInput)))
        # The task begins, and its request goes out, while this is waited for.
        await client.is_server_live()
        task.cancel()
        await asyncio.wait([task], timeout=30)
        simple.expect(task.cancelled(), f"the task is cancelled, got {task}")


arguments = simple.arguments(__doc__)
with grpcclient.InferenceServerClient(arguments.url) as client:
    callbacks(client)
    asyncio.run(awaiting(arguments.url))
    simple.check(client.infer(simple.MODEL, simple.inputs()))
simple.passed()
