"""What is sent, and the proof that what comes back is an answer.

h2load looks at HTTP status alone, and a failed gRPC call is an HTTP 200. So every load is preceded by real calls whose
answers are held against ONNX Runtime's own, and the load is then expected to bring back as many bytes a request.
"""

from __future__ import annotations

import http.client
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import grpc
import numpy as np
from inferd_protocol.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from inferd_protocol.methods import METHODS
from numpy.typing import NDArray

from benchmarks import limit, model
from benchmarks.process import Failed

PATH = METHODS["ModelInfer"].path
_PREFIX = struct.Struct(">BI")
_GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")
_TOLERANCE = 1e-4
_CALL_SECONDS = 20.0
_MAX_MESSAGE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request is made of."""

    datatype: str
    rows: int


@dataclass(frozen=True, slots=True)
class Call:
    """A request as h2load sends it: `answer_bytes` is the size of the body that a success brings back."""

    address: str
    path: str
    headers: tuple[str, ...]
    body: Path
    http1: bool
    answer_bytes: int


class Payloads:
    """The request bodies of a run, written once into `folder`, and the answers that are right."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self._folder = folder
        self._repository = repository
        folder.mkdir(parents=True, exist_ok=True)

    def grpc_call(self, address: str, shape: Shape) -> Call:
        """The call for a server of the Open Inference Protocol. Raises Failed where its answer is wrong."""
        call, answer = grpc_call(address, self.message(shape), self._folder / f"{shape.datatype}-{shape.rows}.grpc")
        self._compare(shape, _probabilities(answer))
        return call

    def echo_call(self, address: str, shape: Shape, answer_bytes: int) -> Call:
        """The same call for a server that answers `answer_bytes` bytes of nothing."""
        message = self.message(shape)
        body = _write(self._folder / f"{shape.datatype}-{shape.rows}.grpc", _PREFIX.pack(0, len(message)) + message)
        return Call(address, PATH, _GRPC_HEADERS, body, False, _PREFIX.size + answer_bytes)

    def raw_call(self, address: str, path: str, shape: Shape) -> Call:
        """The call for a server that takes a tensor's bytes as HTTP body. Raises Failed where its answer is wrong."""
        body = model.rows(shape.datatype, shape.rows).tobytes()
        headers = {"content-type": "application/octet-stream", "x-datatype": shape.datatype}
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=_CALL_SECONDS)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"POST {path}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise Failed(f"POST {path} answered {response.status}: {answer[:200]!r}")
        self._compare(shape, np.frombuffer(answer, np.float32).reshape(-1, model.CLASSES))
        lines = tuple(f"{name}: {value}" for name, value in headers.items())
        return Call(
            address, path, lines, _write(self._folder / f"{shape.datatype}-{shape.rows}.raw", body), True, len(answer)
        )

    def message(self, shape: Shape) -> bytes:
        """A serialised ModelInferRequest with raw contents."""
        request = ModelInferRequest(model_name=model.MODELS[shape.datatype])
        tensor = request.inputs.add(name=model.INPUT, datatype=shape.datatype)
        tensor.shape.extend([shape.rows, model.SIDE, model.SIDE, 1])
        request.raw_input_contents.append(model.rows(shape.datatype, shape.rows).tobytes())
        return request.SerializeToString()

    def _compare(self, shape: Shape, answer: NDArray[np.float32]) -> None:
        expected = _expected(self._repository, shape)
        if answer.shape != expected.shape:
            raise Failed(f"answered shape {answer.shape}, expected {expected.shape}")
        difference = float(np.abs(answer - expected).max())
        if not difference <= _TOLERANCE:
            raise Failed(f"answered probabilities that differ from ONNX Runtime's by {difference:g}")


def grpc_call(address: str, message: bytes, body: Path) -> tuple[Call, bytes]:
    """The call that sends a ModelInferRequest from the file `body`, written here, and the answer to a first one.

    Raises Failed where there is none.
    """
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PATH)
            answer = call(message, timeout=_CALL_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Failed(f"ModelInfer answered {error.code().name}: {error.details()}") from error
    _write(body, _PREFIX.pack(0, len(message)) + message)
    return Call(address, PATH, _GRPC_HEADERS, body, False, _PREFIX.size + len(answer)), answer


def _write(path: Path, body: bytes) -> Path:
    if not path.exists() or path.read_bytes() != body:
        path.write_bytes(body)
    return path


def _probabilities(message: bytes) -> NDArray[np.float32]:
    response = ModelInferResponse.FromString(message)
    if len(response.outputs) != 1:
        raise Failed(f"answered {len(response.outputs)} outputs, expected 1")
    output = response.outputs[0]
    raw = response.raw_output_contents
    values = np.frombuffer(raw[0], np.float32) if raw else np.array(output.contents.fp32_contents, np.float32)
    return values.reshape(tuple(output.shape))


@cache
def _expected(repository: Path, shape: Shape) -> NDArray[np.float32]:
    session = limit.session(model.model_file(repository, shape.datatype))
    (answer,) = session.run([model.OUTPUT], {model.INPUT: model.rows(shape.datatype, shape.rows)})
    return np.asarray(answer)
