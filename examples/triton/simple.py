"""What the examples share: the model `simple`, two inputs of 16 int32 in, their sum and their difference out.

It is the model of that name in Triton's own example repository, so most examples run against a Triton server, too.
Those that give a request up need one that takes its time: `slow`, x float32 [rows, 256] in, y out.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import tritonclient.grpc as grpcclient

MODEL = "simple"
SLOW = "slow"
A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), np.int32)


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("-u", "--url", default="localhost:8001", help="the server's host:port (default: %(default)s)")
    return parser.parse_args()


def inputs(a: np.ndarray = A, b: np.ndarray = B, kind: type = grpcclient.InferInput) -> list:
    made = []
    for name, array in (("INPUT0", a), ("INPUT1", b)):
        tensor = kind(name, list(array.shape), "INT32")
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def slow_inputs(kind: type = grpcclient.InferInput, rows: int = 1000) -> list:
    tensor = kind("x", [rows, 256], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, 256), np.float32))
    return [tensor]


def check(result: grpcclient.InferResult, a: np.ndarray = A, b: np.ndarray = B) -> None:
    expect(np.array_equal(result.as_numpy("OUTPUT0"), a + b), "OUTPUT0 is the sum")
    expect(np.array_equal(result.as_numpy("OUTPUT1"), a - b), "OUTPUT1 is the difference")


def expect(holds: bool, what: str) -> None:
    """Ends the example with status 1 unless it holds."""
    if not holds:
        sys.exit(f"FAIL: expected that {what}")


def passed() -> None:
    print("PASS")
