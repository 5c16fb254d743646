"""Whether the server and a model are there, and what they say about themselves."""

import simple
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

arguments = simple.arguments(__doc__)
with grpcclient.InferenceServerClient(arguments.url) as client:
    simple.expect(client.is_server_live(), "the server is live")
    simple.expect(client.is_server_ready(), "the server is ready")
    simple.expect(client.is_model_ready(simple.MODEL), "the model is ready")

    server = client.get_server_metadata()
    simple.expect(bool(server.name and server.version), f"the server has a name and a version, got {server}")

    model = client.get_model_metadata(simple.MODEL)
    tensors = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in [*model.inputs, *model.outputs]]
    names = ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    simple.expect(
        sorted(tensors) == [(name, "INT32", [-1, 16]) for name in names], f"it has these tensors, got {tensors}"
    )

    as_json = client.get_model_metadata(simple.MODEL, as_json=True)
    simple.expect(as_json["name"] == simple.MODEL, f"the same comes as JSON, got {as_json}")

    try:
        client.get_model_metadata("no_such_model")
    except InferenceServerException as error:
        simple.expect(error.status() in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"), f"none, got {error}")
    else:
        simple.expect(False, "a model that is not there has no metadata")
simple.passed()
