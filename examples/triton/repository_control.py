"""Models loaded and unloaded by request. The server runs with --model-control-mode explicit."""

import json
import time

import simple
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException


def wait_until_unloaded(client: grpcclient.InferenceServerClient) -> None:
    """Unloading goes on after its answer, as long as requests are under way."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        states = {model.state for model in client.get_model_repository_index().models if model.name == simple.MODEL}
        if not states & {"READY", "UNLOADING"}:
            return
        time.sleep(0.01)
    simple.expect(False, f"the model is unloaded, got {states}")


arguments = simple.arguments(__doc__)
with grpcclient.InferenceServerClient(arguments.url) as client:
    client.load_model(simple.MODEL)
    index = client.get_model_repository_index().models
    states = [model.state for model in index if model.name == simple.MODEL]
    simple.expect("READY" in states, f"the model is ready, got {states}")
    simple.check(client.infer(simple.MODEL, simple.inputs()))

    client.unload_model(simple.MODEL)
    wait_until_unloaded(client)
    simple.expect(not client.is_model_ready(simple.MODEL), "the model is not ready")
    try:
        client.infer(simple.MODEL, simple.inputs())
    except InferenceServerException:
        pass
    else:
        simple.expect(False, "a model that is unloaded answers nothing")

    client.load_model(simple.MODEL)
    simple.check(client.infer(simple.MODEL, simple.inputs()))

    # With a configuration in place of its own: batches of 4 rows at most.
    config = client.get_model_config(simple.MODEL, as_json=True)["config"]
    client.load_model(simple.MODEL, config=json.dumps({**config, "max_batch_size": 4}))
    size = client.get_model_config(simple.MODEL).config.max_batch_size
    simple.expect(size == 4, f"the configuration given holds, got batches of {size}")
    simple.check(client.infer(simple.MODEL, simple.inputs()))

    # Without one, the repository's holds again.
    client.load_model(simple.MODEL)
    size = client.get_model_config(simple.MODEL).config.max_batch_size
    simple.expect(size == int(config["max_batch_size"]), f"the repository's configuration holds, got batches of {size}")

    try:
        client.load_model("no_such_model")
    except InferenceServerException as error:
        simple.expect("no_such_model" in str(error), f"the error names the model, got {error}")
    else:
        simple.expect(False, "a model that is not there is not loaded")
simple.passed()
