"""Tensors through system shared memory: the client and the server are on one machine, and only names are sent."""

import contextlib
import os

import numpy as np
import simple
import tritonclient.grpc as grpcclient
import tritonclient.utils.shared_memory as shm

SIZE = simple.A.nbytes

arguments = simple.arguments(__doc__)
with contextlib.ExitStack() as stack:
    client = stack.enter_context(grpcclient.InferenceServerClient(arguments.url))
    regions = {}
    for name in ("example_inputs", "example_outputs"):
        key = f"/{name}_{os.getpid()}"
        regions[name] = shm.create_shared_memory_region(name, key, 2 * SIZE)
        stack.callback(shm.destroy_shared_memory_region, regions[name])
        client.register_system_shared_memory(name, key, 2 * SIZE)
        stack.callback(client.unregister_system_shared_memory, name)
    shm.set_shared_memory_region(regions["example_inputs"], [simple.A, simple.B])

    status = client.get_system_shared_memory_status().regions
    simple.expect(set(status) >= set(regions), f"both regions are registered, got {sorted(status)}")

    inputs = [grpcclient.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    outputs = [grpcclient.InferRequestedOutput(name) for name in ("OUTPUT0", "OUTPUT1")]
    for number in range(2):
        inputs[number].set_shared_memory("example_inputs", SIZE, offset=number * SIZE)
        outputs[number].set_shared_memory("example_outputs", SIZE, offset=number * SIZE)
    result = client.infer(simple.MODEL, inputs, outputs=outputs)
    described = {output.name: list(output.shape) for output in result.get_response().outputs}
    simple.expect(described == {"OUTPUT0": [1, 16], "OUTPUT1": [1, 16]}, f"the answer tells shapes, got {described}")
    simple.expect(not any(result.get_response().raw_output_contents), "the answer itself has no data")

    total = shm.get_contents_as_numpy(regions["example_outputs"], np.int32, [1, 16])
    difference = shm.get_contents_as_numpy(regions["example_outputs"], np.int32, [1, 16], offset=SIZE)
    simple.expect(np.array_equal(total, simple.A + simple.B), f"the first half is the sum, got {total}")
    simple.expect(np.array_equal(difference, simple.A - simple.B), f"the second is the difference, got {difference}")
simple.passed()
