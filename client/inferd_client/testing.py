"""Clients without a server, for the tests of code that uses this library.

    from inferd_client.testing import FakeClient, FakeModel

    model = FakeModel(
        inputs={"image": ("UINT8", (-1, 28, 28, 1))},
        outputs={"probabilities": ("FP32", (-1, 10))},
        answer=lambda inputs: {"probabilities": np.full((len(inputs["image"]), 10), 0.1)},
    )
    with FakeClient({"fashion": model}) as client:
        client.infer("fashion", {"image": images})
    assert client.requests[0].inputs["image"].shape == (1, 28, 28, 1)

They are the real clients over a transport that stays in the process: requests are encoded, decoded, answered by a
function, and encoded again, so names, dtypes and splitting behave as they do with a server. An `answer` that raises an
InferdError is a server that refuses: `raise Overloaded("the queue is full")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.datatypes import BF16, BY_NAME, BYTES
from inferd_protocol.reasons import Parameter
from inferd_protocol.tensors import Tensor, TensorError, bf16_bits, bf16_values, decode_raw, encode_raw

from inferd_client.aio import AsyncClient
from inferd_client.channel import DEFAULT_MAX_MESSAGE_BYTES
from inferd_client.client import Client
from inferd_client.core import Core
from inferd_client.errors import ClientClosed, InferdError, InvalidInput, ModelNotFound, Unimplemented
from inferd_client.requests import ParameterValue
from inferd_client.results import top_classes
from inferd_client.retry import NO_RETRY, Retry

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Datatype and shape by name, as in a model's metadata: -1 is any size."""


@dataclass(frozen=True, slots=True)
class FakeModel:
    """A model that is a function from arrays by input name to arrays by output name.

    The arrays it is given are read-only and have the dtypes of `inputs`; what it returns is cast to those of `outputs`.
    `labels`, by output name, are what the classification extension answers with.
    """

    inputs: Tensors
    outputs: Tensors
    answer: Callable[[Mapping[str, Tensor]], Mapping[str, npt.ArrayLike]]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    version: str = "1"


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """A request for inference as a fake received it."""

    model: str
    version: str
    id: str
    inputs: Mapping[str, Tensor]
    parameters: Mapping[str, ParameterValue]


class FakeClient(Client):
    """A Client whose server is `models` by name. `requests` are the requests for inference so far."""

    def __init__(
        self,
        models: Mapping[str, FakeModel],
        *,
        timeout: float = 30.0,
        retry: Retry = NO_RETRY,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        server = _Server(models)
        self.requests: Sequence[FakeRequest] = server.requests
        self._transport = _Transport(server)
        self._core = Core(timeout=timeout, retry=retry, max_message_bytes=max_message_bytes)


class FakeAsyncClient(AsyncClient):
    """An AsyncClient whose server is `models` by name. `requests` are the requests for inference so far."""

    def __init__(
        self,
        models: Mapping[str, FakeModel],
        *,
        timeout: float = 30.0,
        retry: Retry = NO_RETRY,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        server = _Server(models)
        self.requests: Sequence[FakeRequest] = server.requests
        self._transport = _AsyncTransport(server)
        self._core = Core(timeout=timeout, retry=retry, max_message_bytes=max_message_bytes)


class _Server:
    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self._models = models
        self.requests: list[FakeRequest] = []
        self.closed = False

    def answer(self, method: str, request: bytes) -> bytes:
        if self.closed:
            raise ClientClosed("the client is closed")
        match method:
            case "ServerLive":
                return pb.ServerLiveResponse(live=True).SerializeToString()
            case "ServerReady":
                return pb.ServerReadyResponse(ready=True).SerializeToString()
            case "ServerMetadata":
                return pb.ServerMetadataResponse(name="fake", version="0").SerializeToString()
            case "ModelReady":
                asked = pb.ModelReadyRequest.FromString(request)
                return pb.ModelReadyResponse(ready=self._has(asked.name, asked.version)).SerializeToString()
            case "ModelMetadata":
                return self._metadata(pb.ModelMetadataRequest.FromString(request)).SerializeToString()
            case "ModelInfer":
                return self._infer(pb.ModelInferRequest.FromString(request)).SerializeToString()
        raise Unimplemented(f"a fake server has no {method}")

    def _has(self, name: str, version: str) -> bool:
        model = self._models.get(name)
        return model is not None and version in ("", model.version)

    def _model(self, name: str, version: str) -> FakeModel:
        if not self._has(name, version):
            raise ModelNotFound(f"no model '{name}'" + (f" of version {version}" if version else ""))
        return self._models[name]

    def _metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        model = self._model(request.name, request.version)
        response = pb.ModelMetadataResponse(name=request.name, versions=[model.version], platform="fake")
        for tensors, messages in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for name, (datatype, shape) in tensors.items():
                messages.add(name=name, datatype=datatype, shape=shape)
        return response

    def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        model = self._model(request.model_name, request.model_version)
        inputs = _decode(request)
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice") or "")
            for name, value in request.parameters.items()
        }
        self.requests.append(
            FakeRequest(request.model_name, request.model_version, request.id, inputs, parameters),
        )
        missing = model.inputs.keys() - inputs.keys()
        if missing:
            raise InvalidInput(f"model '{request.model_name}' misses the inputs {sorted(missing)}")
        answered = model.answer(inputs)
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=model.version, id=request.id)
        wanted = request.outputs or [
            pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in model.outputs
        ]
        for output in wanted:
            if output.name not in model.outputs:
                raise InvalidInput(f"model '{request.model_name}' has no output '{output.name}'")
            datatype = BY_NAME[model.outputs[output.name][0]]
            array = np.asarray(answered[output.name])
            array = bf16_bits(array) if datatype is BF16 else array.astype(datatype.numpy)
            if Parameter.CLASSIFICATION in output.parameters:
                count = output.parameters[Parameter.CLASSIFICATION].int64_param
                array, datatype = _classify(array, count, model.labels.get(output.name, ())), BYTES
            response.outputs.add(name=output.name, datatype=datatype.name, shape=array.shape)
            response.raw_output_contents.append(encode_raw(array, datatype))
        return response


def _decode(request: pb.ModelInferRequest) -> dict[str, Tensor]:
    inputs = {}
    for tensor, buffer in zip(request.inputs, request.raw_input_contents, strict=True):
        datatype = BY_NAME[tensor.datatype]
        try:
            array = decode_raw(tensor.name, datatype, tuple(tensor.shape), buffer)
        except TensorError as error:
            raise InvalidInput(str(error)) from error
        inputs[tensor.name] = bf16_values(array) if datatype is BF16 else array
    return inputs


def _classify(array: Tensor, count: int, labels: Sequence[str]) -> Tensor:
    rows = [
        [":".join([f"{best.value:f}", str(best.index), *labels[best.index : best.index + 1]]).encode() for best in row]
        for row in top_classes(array, count)
    ]
    return np.array(rows, object)


class _Done:
    def __init__(self, answer: bytes | InferdError) -> None:
        self._answer = answer

    def result(self) -> bytes:
        if isinstance(self._answer, InferdError):
            raise self._answer
        return self._answer

    def cancel(self) -> None:
        """It is done already."""


class _Transport:
    def __init__(self, server: _Server) -> None:
        self._server = server

    def call(self, method: str, request: bytes, timeout: float) -> bytes:  # noqa: ARG002 - a fake answers at once
        return self._server.answer(method, request)

    def start(self, method: str, request: bytes, timeout: float) -> _Done:
        try:
            return _Done(self.call(method, request, timeout))
        except InferdError as error:
            return _Done(error)

    def close(self) -> None:
        self._server.closed = True


class _AsyncTransport:
    def __init__(self, server: _Server) -> None:
        self._server = server

    async def call(self, method: str, request: bytes, timeout: float) -> bytes:  # noqa: ARG002
        return self._server.answer(method, request)

    async def close(self) -> None:
        self._server.closed = True
