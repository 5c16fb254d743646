"""Ray Serve's deployment: the Open Inference Protocol's ModelInfer over its gRPC proxy, with `serve.batch`."""

from __future__ import annotations

import os
from typing import Any

import grpc
import numpy as np
import onnx_model
from inferd_protocol.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from ray import serve


def add_servicer(servicer: Any, server: Any) -> None:
    """What grpcio-tools would generate: how Ray's proxy learns the method."""
    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(
            servicer.ModelInfer, ModelInferRequest.FromString, ModelInferResponse.SerializeToString
        )
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))


class Cnn:
    """Both variants of the model; a batch is of one of them."""

    def __init__(self) -> None:
        self._sessions = {name: onnx_model.load(datatype) for datatype, name in onnx_model.MODELS.items()}

    async def ModelInfer(self, request: ModelInferRequest) -> ModelInferResponse:  # noqa: N802 - the RPC's name
        """One call."""
        tensor = request.inputs[0]
        rows = np.frombuffer(request.raw_input_contents[0], onnx_model.DTYPES[tensor.datatype])
        probabilities = await self._run((request.model_name, rows.reshape(tuple(tensor.shape))))
        response = ModelInferResponse(model_name=request.model_name)
        output = response.outputs.add(name=onnx_model.OUTPUT, datatype="FP32")
        output.shape.extend(probabilities.shape)
        response.raw_output_contents.append(probabilities.tobytes())
        return response

    @serve.batch(
        max_batch_size=int(os.environ.get("BENCH_MAX_BATCH_SIZE", "64")),
        batch_wait_timeout_s=float(os.environ.get("BENCH_BATCH_TIMEOUT", "0.01")),
    )
    async def _run(self, requests: list[tuple[str, Any]]) -> list[Any]:
        output = onnx_model.run(self._sessions[requests[0][0]], np.concatenate([rows for _, rows in requests]))
        return list(np.split(output, np.cumsum([len(rows) for _, rows in requests])[:-1]))
