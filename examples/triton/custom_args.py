"""gRPC's own arguments for a channel, keep-alive, and headers that go out with a call."""

import simple
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

arguments = simple.arguments(__doc__)

keepalive = grpcclient.KeepAliveOptions(keepalive_time_ms=60_000, keepalive_timeout_ms=10_000)
with grpcclient.InferenceServerClient(arguments.url, keepalive_options=keepalive) as client:
    simple.check(client.infer(simple.MODEL, simple.inputs(), headers={"x-caller": "custom_args.py"}))

# The arguments given replace the client's own, so that this one cannot send a request of this size.
with grpcclient.InferenceServerClient(arguments.url, channel_args=[("grpc.max_send_message_length", 100)]) as client:
    simple.expect(client.is_server_live(), "small requests go out")
    try:
        client.infer(simple.MODEL, simple.inputs())
    except InferenceServerException as error:
        simple.expect(error.status() == "StatusCode.RESOURCE_EXHAUSTED", f"the channel refuses it, got {error}")
    else:
        simple.expect(False, "a request of more than 100 bytes is refused")
simple.passed()
