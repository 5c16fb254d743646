"""KServe's SDK: a Model over gRPC. The SDK has no batcher (KServe's is an agent beside the server)."""

from __future__ import annotations

import argparse

import onnx_model
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Cnn(Model):  # type: ignore[misc]
    """One variant of the model, as KServe's documentation writes a custom predictor."""

    def __init__(self, datatype: str) -> None:
        super().__init__(onnx_model.MODELS[datatype])
        self._session = onnx_model.load(datatype)
        self.ready = True

    def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        """Raw in, raw out."""
        probabilities = onnx_model.run(self._session, payload.inputs[0].as_numpy())
        output = InferOutput(onnx_model.OUTPUT, list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    arguments = parser.parse_args()
    server = ModelServer(
        http_port=arguments.http_port, grpc_port=arguments.port, enable_grpc=True, workers=1, access_log_format=None
    )
    server.start([Cnn(datatype) for datatype in onnx_model.MODELS])


if __name__ == "__main__":
    _main()
