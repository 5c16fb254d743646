"""A model's configuration."""

import simple
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

arguments = simple.arguments(__doc__)
with grpcclient.InferenceServerClient(arguments.url) as client:
    config = client.get_model_config(simple.MODEL).config
    simple.expect(config.name == simple.MODEL, f"it is the model's, got '{config.name}'")
    simple.expect(config.max_batch_size > 0, f"the model takes batches, got {config.max_batch_size}")
    # Without the batch axis, which max_batch_size stands for.
    inputs = {tensor.name: list(tensor.dims) for tensor in config.input}
    simple.expect(inputs == {"INPUT0": [16], "INPUT1": [16]}, f"it has these inputs, got {inputs}")
    simple.expect(len(config.output) == 2, "it has two outputs")

    as_json = client.get_model_config(simple.MODEL, as_json=True)["config"]
    simple.expect(as_json["name"] == simple.MODEL, f"the same comes as JSON, got {as_json}")

    try:
        client.get_model_config("no_such_model")
    except InferenceServerException as error:
        simple.expect(error.status() in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"), f"none, got {error}")
    else:
        simple.expect(False, "a model that is not there has no configuration")
simple.passed()
