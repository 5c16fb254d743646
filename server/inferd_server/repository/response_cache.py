"""The response cache: what runs gave, kept for requests that bring the same contents again, bounded in bytes.

One store for all models, from which the least recently used goes first; each loaded version has a handle of its own, so
that a version that was loaded again never answers with what the former one gave.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

from inferd_protocol.tensors import Tensor

_LOG = logging.getLogger(__name__)

_ENTRY_BYTES = 640
"""What an entry takes beside its elements: key, list, places in two dictionaries."""
_ARRAY_BYTES = 192
"""What an array takes beside its elements."""
_MOST_AT_ONCE = 32
"""Entries that go while the lock is held once: whoever looks something up never waits for more."""


@dataclass(slots=True)
class CacheStatistics:
    """Of one version of a model, from the start of the server, however often it was loaded; times in nanoseconds.

    `hit_ns` and `miss_ns` are spent in looking up, `insertion_ns` in keeping what a run gave after a miss.
    """

    hits: int = 0
    hit_ns: int = 0
    misses: int = 0
    miss_ns: int = 0
    insertions: int = 0
    insertion_ns: int = 0

    def __add__(self, other: CacheStatistics) -> CacheStatistics:
        """Those of both."""
        return CacheStatistics(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class ResponseCache:
    """Keeps at most `max_bytes` of outputs, those of all models together; with 0 it keeps none. For any thread."""

    def __init__(self, max_bytes: int, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._max_bytes = max_bytes
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        """Held for a look-up, or for a few entries that come or go; never while elements are copied."""
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        """The least recently used first."""
        self._bytes = 0
        self._statistics: dict[tuple[str, int], CacheStatistics] = {}
        self._warned: set[str] = set()

    @property
    def used_bytes(self) -> int:
        """What the entries take now, never more than the bound."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, name: str, version: int) -> ServableCache | None:
        """A handle for a version that was just loaded; None, said in the log once a model, where the cache is off."""
        if not self._max_bytes:
            if name not in self._warned:
                self._warned.add(name)
                _LOG.warning(
                    "model '%s' asks for a response cache and is served without: start the server with "
                    "--response-cache-bytes",
                    name,
                )
            return None
        with self._lock:
            return ServableCache(self, self._statistics.setdefault((name, version), CacheStatistics()))

    def statistics(self, name: str, version: int) -> CacheStatistics:
        """What was counted of a version until now; zeros where it never had a cache."""
        with self._lock:
            return replace(self._statistics.get((name, version), CacheStatistics()))

    def get(self, owner: ServableCache, digest: bytes) -> Sequence[Tensor] | None:
        """The outputs kept under a digest, as good as new from here on."""
        began = self._clock_ns()
        key = (owner, digest)
        counted = owner.counted
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                counted.misses += 1
                counted.miss_ns += self._clock_ns() - began
                return None
            self._entries.move_to_end(key)
            counted.hits += 1
            counted.hit_ns += self._clock_ns() - began
            return entry.outputs

    def put(self, owner: ServableCache, digest: bytes, outputs: Sequence[Tensor]) -> None:
        """Keeps copies of outputs, and lets go of others for them; not of what is larger than the bound."""
        began = self._clock_ns()
        size = _size(outputs)
        if size > self._max_bytes or owner.closed:
            return
        copies = [array.copy() for array in outputs]
        for array in copies:
            array.flags.writeable = False
        entry = _Entry(copies, size)
        while not self._put(owner, digest, entry):
            pass
        with self._lock:
            owner.counted.insertions += 1
            owner.counted.insertion_ns += self._clock_ns() - began

    def drop(self, owner: ServableCache) -> None:
        """Lets go of everything that a handle keeps, and of what it would keep from here on."""
        with self._lock:
            owner.closed = True
        while owner.digests:
            with self._lock:
                for _ in range(min(_MOST_AT_ONCE, len(owner.digests))):
                    self._remove((owner, next(iter(owner.digests))))

    def _put(self, owner: ServableCache, digest: bytes, entry: _Entry) -> bool:
        """One step: makes a little room, or puts the entry where there is enough. Whether nothing is left to do."""
        key = (owner, digest)
        with self._lock:
            if owner.closed:
                return True
            if key in self._entries:
                # A request that was alike ran at the same time.
                self._remove(key)
            for _ in range(_MOST_AT_ONCE):
                if self._bytes + entry.size <= self._max_bytes:
                    self._entries[key] = entry
                    owner.digests.add(digest)
                    self._bytes += entry.size
                    return True
                self._remove(next(iter(self._entries)))
        return False

    def _remove(self, key: _Key) -> None:
        self._bytes -= self._entries.pop(key).size
        key[0].digests.discard(key[1])


class ServableCache:
    """The part of the cache that belongs to one loaded version. `closed` and `digests` are the cache's own."""

    __slots__ = ("_cache", "closed", "counted", "digests")

    def __init__(self, cache: ResponseCache, counted: CacheStatistics) -> None:
        self._cache = cache
        self.counted = counted
        self.digests: set[bytes] = set()
        self.closed = False

    def get(self, digest: bytes) -> Sequence[Tensor] | None:
        """The outputs of a run, read-only and in the model's order, None where there are none (any more)."""
        return self._cache.get(self, digest)

    def put(self, digest: bytes, outputs: Sequence[Tensor]) -> None:
        """Keeps copies of a run's outputs, where they are not larger than the whole cache."""
        self._cache.put(self, digest, outputs)

    def close(self) -> None:
        """Lets go of everything; from here on nothing is kept."""
        self._cache.drop(self)


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    outputs: Sequence[Tensor]
    size: int
    """Bytes."""


_Key: TypeAlias = tuple[ServableCache, bytes]


def _size(outputs: Sequence[Tensor]) -> int:
    size = _ENTRY_BYTES
    for array in outputs:
        size += _ARRAY_BYTES + array.nbytes
        if array.dtype.hasobject:
            size += sum(map(sys.getsizeof, array.reshape(-1).tolist()))
    return size
