"""The clients of the protocol in one process, in every order, calling one server.

Each brings messages of the same full names. Ours are in a descriptor pool of their own, so that they stand beside
anybody's.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys

import pytest
from support.server import ServerProcess

PROGRAM = """
import asyncio, importlib, sys
import numpy as np

address, *order = sys.argv[1:]
A, B = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)


def ours(module):
    with module.Client(address) as client:
        return client.infer("simple", {"INPUT0": A, "INPUT1": B})["OUTPUT0"]


def tritons(module):
    tensors = [module.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor, array in zip(tensors, (A, B)):
        tensor.set_data_from_numpy(array)
    with module.InferenceServerClient(address) as client:
        return client.infer("simple", tensors).as_numpy("OUTPUT0")


def kserves(module):
    tensors = [module.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor, array in zip(tensors, (A, B)):
        tensor.set_data_from_numpy(array)

    async def call():
        client = module.InferenceGRPCClient(address)
        try:
            return await client.infer(module.InferRequest("simple", tensors))
        finally:
            await client.close()

    return asyncio.run(call()).outputs[0].as_numpy()


CALLS = {"inferd_client": ours, "tritonclient.grpc": tritons, "kserve": kserves}
modules = [(name, importlib.import_module(name)) for name in order]
# Twice around: each has been imported after, and has called before, each other.
for name, module in modules * 2:
    answer = CALLS[name](module)
    assert np.array_equal(answer, A + B), (name, answer)
print("answered")
"""

needs_kserve = pytest.mark.skipif(
    importlib.util.find_spec("kserve") is None,
    reason="kserve is not installed: it needs python-dateutil < 3 beside the pinned 4, and 480 MB",
)


def call_in_one_process(server: ServerProcess, order: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, server.address, *order], capture_output=True, text=True, timeout=120
    )
    if "duplicate symbol" in ended.stderr:
        raise TypeError(ended.stderr)
    assert (ended.returncode, ended.stdout) == (0, "answered\n"), ended.stderr


@pytest.mark.parametrize("order", list(itertools.permutations(["inferd_client", "tritonclient.grpc"])), ids=" ".join)
def test_beside_tritonclient(server: ServerProcess, order: tuple[str, ...]) -> None:
    call_in_one_process(server, order)


@needs_kserve
@pytest.mark.parametrize("order", list(itertools.permutations(["inferd_client", "kserve"])), ids=" ".join)
def test_beside_kserve(server: ServerProcess, order: tuple[str, ...]) -> None:
    call_in_one_process(server, order)


@needs_kserve
@pytest.mark.xfail(
    strict=True,
    raises=TypeError,
    reason="tritonclient and kserve register the same names in protobuf's one default pool, and refuse each other",
)
@pytest.mark.parametrize(
    "order",
    [
        *itertools.permutations(["tritonclient.grpc", "kserve"]),
        ("inferd_client", "tritonclient.grpc", "kserve"),
    ],
    ids=" ".join,
)
def test_tritonclient_beside_kserve(server: ServerProcess, order: tuple[str, ...]) -> None:
    """With us or without: the day they do, this fails, and all three can be proved together."""
    call_in_one_process(server, order)
