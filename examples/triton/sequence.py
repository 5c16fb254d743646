"""Two sequences whose requests take turns: the server keeps the running sum of each.

Needs the model `sums`: x float32 [1, 1] in, y out, the sum of the sequence so far (state declared in its config.pbtxt).
"""

import numpy as np
import simple
import tritonclient.grpc as grpcclient

MODEL = "sums"
VALUES = {1001: [1, 2, 3, 4], 1002: [10, 20, 30, 40]}

arguments = simple.arguments(__doc__)
sums: dict[int, list[float]] = {sequence: [] for sequence in VALUES}
with grpcclient.InferenceServerClient(arguments.url) as client:
    for step in range(4):
        for sequence, values in VALUES.items():
            tensor = grpcclient.InferInput("x", [1, 1], "FP32")
            tensor.set_data_from_numpy(np.full((1, 1), values[step], np.float32))
            result = client.infer(
                MODEL, [tensor], sequence_id=sequence, sequence_start=step == 0, sequence_end=step == 3
            )
            sums[sequence].append(float(result.as_numpy("y")[0, 0]))
for sequence, values in VALUES.items():
    simple.expect(sums[sequence] == np.cumsum(values).tolist(), f"sequence {sequence} is summed alone")
simple.passed()
