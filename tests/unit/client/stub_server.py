"""A small gRPC server in the test's own process, whose answers a test decides, call by call."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.methods import METHODS, SERVICE
from inferd_protocol.reasons import REASON_KEY

SECONDS = 30.0
Handler = Callable[[Any, grpc.ServicerContext], Message | bytes]


def metadata(
    *,
    name: str = "double",
    inputs: dict[str, tuple[str, list[int]]] | None = None,
    outputs: dict[str, tuple[str, list[int]]] | None = None,
) -> pb.ModelMetadataResponse:
    response = pb.ModelMetadataResponse(name=name, versions=["1"], platform="stub")
    for tensors, messages in (
        (inputs or {"x": ("FP32", [-1, 2])}, response.inputs),
        (outputs or {"y": ("FP32", [-1, 2])}, response.outputs),
    ):
        for tensor, (datatype, shape) in tensors.items():
            messages.add(name=tensor, datatype=datatype, shape=shape)
    return response


def double(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
    """x float32 -> y, twice as much."""
    array = np.frombuffer(request.raw_input_contents[0], np.float32) * 2
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
    response.raw_output_contents.append(array.tobytes())
    return response


def config(request: pb.ModelConfigRequest, context: grpc.ServicerContext) -> pb.ModelConfigResponse:
    """Version 3 is `stable`, and runs on the CPU."""
    response = pb.ModelConfigResponse()
    response.config.name = request.name
    response.config.platform = "onnxruntime_onnx"
    response.config.backend = "onnxruntime"
    response.config.max_batch_size = 64
    response.config.version_policy.specific.versions.extend([2, 3])
    for key, value in {"label:stable": "3", "provider": "CPUExecutionProvider"}.items():
        response.config.parameters[key].string_value = value
    return response


def index(*models: tuple[str, str, str, str]) -> pb.RepositoryIndexResponse:
    response = pb.RepositoryIndexResponse()
    for name, version, state, reason in models:
        response.models.add(name=name, version=version, state=state, reason=reason)
    return response


def counters(name: str, version: str, *, requests: int, rows: int, executions: int = 1) -> pb.ModelStatistics:
    """A version's statistics: every request waited 10 us and took 1 us in, 100 us in the model and 2 us out."""
    message = pb.ModelStatistics(name=name, version=version, inference_count=rows, execution_count=executions)
    times = message.inference_stats
    for duration, microseconds in (
        (times.success, 113),
        (times.queue, 10),
        (times.compute_input, 1),
        (times.compute_infer, 100),
        (times.compute_output, 2),
    ):
        duration.count, duration.ns = requests, requests * microseconds * 1000
    times.fail.count = 1
    message.batch_stats.add(batch_size=rows // executions).compute_infer.count = executions
    return message


def statistics(*models: pb.ModelStatistics) -> pb.ModelStatisticsResponse:
    return pb.ModelStatisticsResponse(model_stats=models)


def refuse(code: grpc.StatusCode, message: str = "no", reason: str | None = None) -> Handler:
    def handler(request: Message, context: grpc.ServicerContext) -> Message:
        if reason is not None:
            context.set_trailing_metadata(((REASON_KEY, reason),))
        context.abort(code, message)
        raise AssertionError("abort raises")

    return handler


class Held:
    """A handler that answers nothing until it is let go; it says when a call has come and when it was cancelled."""

    def __init__(self, then: Handler = double) -> None:
        self.arrived = threading.Semaphore(0)
        self.cancelled = threading.Event()
        self._go = threading.Event()
        self._then = then

    def __call__(self, request: Message, context: grpc.ServicerContext) -> Message | bytes:
        context.add_callback(self._ended)
        self.arrived.release()
        assert self._go.wait(SECONDS)
        return self._then(request, context)

    def let_go(self) -> None:
        self._go.set()

    def _ended(self) -> None:
        if not self._go.is_set():
            self.cancelled.set()
        self._go.set()


class StubServer:
    """`script[method]` are the handlers of the next calls of a method; when it is empty, `default[method]` answers."""

    def __init__(self, **options: Any) -> None:
        self.script: dict[str, list[Handler]] = defaultdict(list)
        self.default: dict[str, Handler] = {
            "ServerLive": lambda request, context: pb.ServerLiveResponse(live=True),
            "ServerReady": lambda request, context: pb.ServerReadyResponse(ready=True),
            "ModelReady": lambda request, context: pb.ModelReadyResponse(ready=True),
            "ServerMetadata": lambda request, context: pb.ServerMetadataResponse(
                name="stub", version="1.0", extensions=["classification"]
            ),
            "ModelMetadata": lambda request, context: metadata(name=request.name),
            "ModelInfer": double,
            "ModelConfig": config,
            "ModelStatistics": lambda request, context: statistics(counters("double", "3", requests=2, rows=8)),
            "RepositoryIndex": lambda request, context: index(("double", "3", "READY", "")),
            "RepositoryModelLoad": lambda request, context: pb.RepositoryModelLoadResponse(),
            "RepositoryModelUnload": lambda request, context: pb.RepositoryModelUnloadResponse(),
        }
        self.requests: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str]] = []
        self._server = grpc.server(
            ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", -1), *options.items()]
        )
        handlers = {name: self._handler(name) for name in self.default}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def start(self, credentials: grpc.ServerCredentials | None = None) -> StubServer:
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()
        return self

    def stop(self) -> None:
        self._server.stop(None).wait(SECONDS)

    def names(self) -> list[str]:
        """The methods called, in order."""
        return [name for name, _ in self.requests]

    def _handler(self, name: str) -> grpc.RpcMethodHandler:
        def answer(request: Message, context: grpc.ServicerContext) -> bytes:
            self.requests.append((name, request))
            self.metadata.append(dict(context.invocation_metadata()))
            handler = self.script[name].pop(0) if self.script[name] else self.default[name]
            response = handler(request, context)
            return response if isinstance(response, bytes) else response.SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer, METHODS[name].request.FromString, None)
