"""A request, and its answer: all outputs, then one of them."""

import simple
import tritonclient.grpc as grpcclient

arguments = simple.arguments(__doc__)
with grpcclient.InferenceServerClient(arguments.url) as client:
    simple.check(client.infer(simple.MODEL, simple.inputs()))

    outputs = [grpcclient.InferRequestedOutput("OUTPUT1")]
    result = client.infer(simple.MODEL, simple.inputs(), outputs=outputs, request_id="seven")
    simple.expect(result.as_numpy("OUTPUT0") is None, "only the output asked for is answered")
    simple.expect(result.get_response().id == "seven", "the answer has the request's id")
simple.passed()
