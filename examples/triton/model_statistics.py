"""What a model has done, counted: before and after some requests."""

import numpy as np
import simple
import tritonclient.grpc as grpcclient

REQUESTS, ROWS = 5, 3


def statistics(client: grpcclient.InferenceServerClient):
    (model,) = client.get_inference_statistics(simple.MODEL).model_stats
    return model


arguments = simple.arguments(__doc__)
a, b = np.repeat(simple.A, ROWS, axis=0), np.repeat(simple.B, ROWS, axis=0)
with grpcclient.InferenceServerClient(arguments.url) as client:
    before = statistics(client)
    for _ in range(REQUESTS):
        simple.check(client.infer(simple.MODEL, simple.inputs(a, b)), a, b)
    after = statistics(client)

requests = after.inference_stats.success.count - before.inference_stats.success.count
simple.expect(requests == REQUESTS, f"{REQUESTS} requests are counted, got {requests}")
rows = after.inference_count - before.inference_count
simple.expect(rows == REQUESTS * ROWS, f"{REQUESTS * ROWS} rows are counted, got {rows}")
simple.expect(after.execution_count > before.execution_count, "the executions are counted")
simple.expect(after.last_inference > before.last_inference, "the moment of the last inference is told")
times = after.inference_stats
parts = times.queue.ns + times.compute_input.ns + times.compute_infer.ns + times.compute_output.ns
simple.expect(0 < parts <= times.success.ns, f"the parts are within the whole, got {parts} ns of {times.success.ns}")
simple.passed()
