"""A time after which the client gives a call up, in each way of calling."""

import asyncio
import queue

import simple
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from tritonclient.utils import InferenceServerException

TOO_SHORT, AMPLE = 0.02, 30.0


def expect_timeout(error: object) -> None:
    simple.expect(isinstance(error, InferenceServerException), f"the call is given up, got {error}")
    simple.expect(error.status() == "StatusCode.DEADLINE_EXCEEDED", f"the deadline passed, got {error}")


def blocking(client: grpcclient.InferenceServerClient) -> None:
    try:
        client.infer(simple.SLOW, simple.slow_inputs(), client_timeout=TOO_SHORT)
    except InferenceServerException as error:
        expect_timeout(error)
    else:
        expect_timeout(None)
    simple.check(client.infer(simple.MODEL, simple.inputs(), client_timeout=AMPLE))


def callbacks(client: grpcclient.InferenceServerClient) -> None:
    answers: queue.Queue = queue.Queue()

    def answered(result: object, error: object) -> None:
        answers.put((result, error))

    client.async_infer(simple.SLOW, simple.slow_inputs(), answered, client_timeout=TOO_SHORT)
    _, error = answers.get(timeout=AMPLE)
    expect_timeout(error)
    client.async_infer(simple.MODEL, simple.inputs(), answered, client_timeout=AMPLE)
    result, error = answers.get(timeout=AMPLE)
    simple.expect(error is None, f"the call is answered in time, got {error}")
    simple.check(result)


async def awaiting(url: str) -> None:
    async with aioclient.InferenceServerClient(url) as client:
        try:
            await client.infer(simple.SLOW, simple.slow_inputs(aioclient.InferInput), client_timeout=TOO_SHORT)
        except InferenceServerException as error:
            expect_timeout(error)
        else:
            expect_timeout(None)
        inputs = simple.inputs(kind=aioclient.InferInput)
        simple.check(await client.infer(simple.MODEL, inputs, client_timeout=AMPLE))


arguments = simple.arguments(__doc__)
with grpcclient.InferenceServerClient(arguments.url) as client:
    blocking(client)
    callbacks(client)
asyncio.run(awaiting(arguments.url))
simple.passed()
