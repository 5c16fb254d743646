"""Many requests over one stream, their answers as they come, and an error that does not end it."""

import contextlib
import queue

import simple
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

REQUESTS = 20

arguments = simple.arguments(__doc__)
answers: queue.Queue = queue.Queue()
with grpcclient.InferenceServerClient(arguments.url) as client:
    client.start_stream(lambda result, error: answers.put((result, error)))
    # A stream that has ended takes no more requests: why it did comes to the callback, as the answers do.
    with contextlib.suppress(InferenceServerException):
        for number in range(REQUESTS):
            client.async_stream_infer(simple.MODEL, simple.inputs(simple.A + number), request_id=str(number))
    ids = set()
    for _ in range(REQUESTS):
        result, error = answers.get(timeout=30)
        simple.expect(error is None, f"a request is answered, got {error}")
        number = result.get_response().id
        ids.add(number)
        simple.check(result, simple.A + int(number))
    simple.expect(len(ids) == REQUESTS, f"each request has its answer, got those of {sorted(ids)}")

    client.async_stream_infer("no_such_model", simple.inputs())
    result, error = answers.get(timeout=30)
    simple.expect(result is None and "no_such_model" in str(error), f"the error names the model, got {error}")
    client.async_stream_infer(simple.MODEL, simple.inputs())
    result, error = answers.get(timeout=30)
    simple.expect(error is None, f"the stream goes on after an error, got {error}")
    simple.check(result)
    client.stop_stream()
simple.passed()
