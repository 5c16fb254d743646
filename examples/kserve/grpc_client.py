"""KServe's `InferenceGRPCClient`: readiness and inference; metadata, load and unload through the stub that it is built
on, since the client has no methods for them. Needs `pip install kserve`.

python examples/kserve/grpc_client.py --url 127.0.0.1:8001
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

MODEL = "simple"


async def run(url: str) -> None:
    client = InferenceGRPCClient(url)
    channel = grpc.aio.insecure_channel(url)
    stub = GRPCInferenceServiceStub(channel)
    try:
        loaded = await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=MODEL))
        expect(loaded.model_name == MODEL and loaded.isLoaded, "the answer says that the model is loaded")
        expect(await client.is_server_live(), "the server is live")
        expect(await client.is_server_ready(), "the server is ready")
        expect(await client.is_model_ready(MODEL), "the model is ready")
        first, second = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)
        metadata = await stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL))
        expect({tensor.name for tensor in metadata.inputs} == {"INPUT0", "INPUT1"}, "the metadata names both inputs")
        inputs = [InferInput("INPUT0", [1, 16], "INT32"), InferInput("INPUT1", [1, 16], "INT32")]
        for tensor, array in zip(inputs, (first, second), strict=True):
            tensor.set_data_from_numpy(array)
        response = await client.infer(InferRequest(MODEL, inputs))
        outputs = {output.name: output.as_numpy() for output in response.outputs}
        expect(np.array_equal(outputs["OUTPUT0"], first + second), "OUTPUT0 is the sum")
        expect(np.array_equal(outputs["OUTPUT1"], first - second), "OUTPUT1 is the difference")
        await stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name=MODEL))
        expect(not await client.is_model_ready(MODEL), "the unloaded model is not ready")
        await stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name=MODEL))
        expect(await client.is_model_ready(MODEL), "the model is ready again")
    finally:
        await client.close()
        await channel.close()


def expect(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"FAIL: expected that {what}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="127.0.0.1:8001")
    asyncio.run(run(parser.parse_args().url))
    print("PASS")
