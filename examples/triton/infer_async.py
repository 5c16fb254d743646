"""Several requests in flight from one thread; each answer comes to a callback, on a thread of the client's."""

import queue

import simple
import tritonclient.grpc as grpcclient

REQUESTS = 20

arguments = simple.arguments(__doc__)
answers: queue.Queue = queue.Queue()
with grpcclient.InferenceServerClient(arguments.url) as client:
    for number in range(REQUESTS):
        client.async_infer(
            simple.MODEL,
            simple.inputs(simple.A + number),
            lambda result, error: answers.put((result, error)),
            request_id=str(number),
        )
    for _ in range(REQUESTS):
        result, error = answers.get(timeout=30)
        simple.expect(error is None, f"a request is answered, got {error}")
        simple.check(result, simple.A + int(result.get_response().id))
simple.passed()
