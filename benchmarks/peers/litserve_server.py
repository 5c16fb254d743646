"""LitServe: a LitAPI that takes the tensor's bytes as the request's body, several times the rate of its JSON."""
# No `from __future__ import annotations`: LitServe reads the annotations of decode_request as FastAPI parameters.

import argparse
from typing import Annotated, Any

import litserve
import numpy as np
import onnx_model
from fastapi import Depends, Request, Response


async def _body(request: Request) -> tuple[str, bytes]:
    return request.headers["x-datatype"], await request.body()


class CnnApi(litserve.LitAPI):  # type: ignore[misc]
    """Both variants of the model; a batch is of one of them."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe passes it by name
        """Makes the sessions in the worker process."""
        self._sessions = {np.dtype(onnx_model.DTYPES[key]): onnx_model.load(key) for key in onnx_model.MODELS}

    def decode_request(self, request: Annotated[tuple, Depends(_body)]) -> Any:
        """Bytes to an array."""
        datatype, body = request
        return np.frombuffer(body, onnx_model.DTYPES[datatype]).reshape(-1, 28, 28, 1)

    def batch(self, inputs: list[Any]) -> Any:
        """Requests may have several rows, so they are joined, not stacked."""
        self._rows = [len(rows) for rows in inputs]
        return np.concatenate(inputs)

    def predict(self, batch: Any) -> Any:
        """Rows in, probabilities out."""
        return onnx_model.run(self._sessions[batch.dtype], batch)

    def unbatch(self, output: Any) -> list[Any]:
        """Each request's own rows."""
        return list(np.split(output, np.cumsum(self._rows)[:-1]))

    def encode_response(self, output: Any) -> Response:
        """An array to bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=1, help="requests")
    parser.add_argument("--batch-timeout", type=float, default=0.0, help="seconds")
    arguments = parser.parse_args()
    api = CnnApi(max_batch_size=arguments.max_batch_size, batch_timeout=arguments.batch_timeout)
    server = litserve.LitServer(api, accelerator="cpu", timeout=60, fast_queue=False)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False, generate_client_file=False)


if __name__ == "__main__":
    _main()
