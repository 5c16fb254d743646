"""Strings: BYTES tensors. Their elements differ in length, and may be empty; what ONNX takes for a string is UTF-8."""

import numpy as np
import simple
import tritonclient.grpc as grpcclient

MODEL = "simple_identity"
ELEMENTS = ["one", "zwölf", "", "\N{SNOWMAN}", "a longer one " * 100, *map(str, range(11))]

arguments = simple.arguments(__doc__)
array = np.array([[text.encode() for text in ELEMENTS]], np.object_)
tensor = grpcclient.InferInput("INPUT0", list(array.shape), "BYTES")
tensor.set_data_from_numpy(array)
with grpcclient.InferenceServerClient(arguments.url) as client:
    answer = client.infer(MODEL, [tensor]).as_numpy("OUTPUT0")
simple.expect(answer.tolist() == array.tolist(), f"the strings come back as they went, got {answer}")
simple.passed()
