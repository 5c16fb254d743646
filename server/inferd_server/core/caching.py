"""Answers from the response cache: which requests are alike, and what is done with a run that is to be kept.

The run is what is kept, all its outputs: ids, the outputs asked for and their classification are each request's own,
and are worked out from the run again. Requests that are alike and arrive before the first of them was run each run.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
from inferd_protocol.datatypes import BYTES
from inferd_protocol.tensors import Tensor, encode_raw

from inferd_server.errors import ServerError
from inferd_server.repository.response_cache import ServableCache
from inferd_server.request import Content, Reply
from inferd_server.scheduling.work import Finish, Layout
from inferd_server.shared_memory.regions import Window

_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 32


def digest(layout: Layout, rows: int, contents: Sequence[Content]) -> bytes | None:
    """Equal for requests to one version that bring the same tensors, and for no others: 256 bits of BLAKE2b.

    None where any of them is in shared memory, which its owner may change before the run.

    `contents` are in the model's order. Raw and typed contents of the same elements are alike.
    """
    # The datatypes are the version's; rows and shapes tell where in the bytes each element is.
    shapes = f"{rows} {layout.key}".encode()
    hashed = hashlib.blake2b(_LENGTH.pack(len(shapes)) + shapes, digest_size=_DIGEST_BYTES)
    for content in contents:
        if isinstance(content, Window):
            return None
        raw = _raw(content)
        hashed.update(_LENGTH.pack(len(raw)))
        hashed.update(raw)
    return hashed.digest()


class Keep:
    """Finishes a request whose outputs are to be kept: before it is answered, so that who has the answer finds them."""

    __slots__ = ("_cache", "_digest", "_finish")

    def __init__(self, cache: ServableCache, digest: bytes, finish: Finish) -> None:
        self._cache = cache
        self._digest = digest
        self._finish = finish

    def __call__(self, reply: Reply, outputs: Sequence[Tensor]) -> ServerError | None:
        """Keeps the outputs and answers the request with them. Returns what the answer does."""
        self._cache.put(self._digest, outputs)
        return self._finish(reply, outputs)


def _raw(content: memoryview | Tensor) -> bytes | memoryview:
    if not isinstance(content, np.ndarray):
        return content
    # With a length before each element: ["ab", "c"] and ["a", "bc"] are no two ways to write one text.
    return encode_raw(content, BYTES) if content.dtype.hasobject else content.tobytes()
