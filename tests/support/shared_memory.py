"""Shared memory objects for tests, gone when the test is."""

from __future__ import annotations

import contextlib
import gc
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from inferd_protocol import grpc_service_pb2 as pb
from inferd_server.shared_memory.system import FOLDER

DATA = bytes(range(256))


@contextlib.contextmanager
def shared_object(nbytes: int, data: bytes = b"") -> Iterator[Path]:
    """The file of an object of `nbytes` bytes, `data` first. Its name is the key."""
    path = FOLDER / f"inferd-test-{os.getpid()}-{uuid.uuid4().hex}"
    path.write_bytes(data.ljust(nbytes, b"\0"))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def parameters(region: object = "r", offset: object = None, byte_size: object = 8) -> dict[str, pb.InferParameter]:
    """A tensor's place; what is None is left out."""
    made = {}
    for name, value in (("region", region), ("offset", offset), ("byte_size", byte_size)):
        if isinstance(value, str):
            made[f"shared_memory_{name}"] = pb.InferParameter(string_param=value)
        elif isinstance(value, int):
            made[f"shared_memory_{name}"] = pb.InferParameter(int64_param=value)
    return made


def message(
    *places: dict[str, pb.InferParameter] | None,
    outputs: tuple[dict[str, pb.InferParameter] | None, ...] = (),
    raw: tuple[bytes, ...] = (),
    request_id: str = "",
    datatype: str = "FP32",
    contents: pb.InferTensorContents | None = None,
) -> bytes:
    """A request of an input of two elements for each place: in the message where it is None."""
    return pb.ModelInferRequest(
        model_name="m",
        id=request_id,
        inputs=[
            pb.ModelInferRequest.InferInputTensor(
                name=f"x{number}", datatype=datatype, shape=[2], parameters=place, contents=contents
            )
            for number, place in enumerate(places)
        ],
        outputs=[
            pb.ModelInferRequest.InferRequestedOutputTensor(name=f"y{number}", parameters=place)
            for number, place in enumerate(outputs)
        ],
        raw_input_contents=raw,
    ).SerializeToString(deterministic=True)


def open_files() -> set[str]:
    """What the file descriptors of this process lead to, once nothing is left to be collected."""
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            # The listing's own.
            continue
    return found
