"""The response cache: what it keeps, what it lets go of, and which requests are alike to it."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_protocol.tensors import Tensor
from inferd_server.core.caching import digest
from inferd_server.repository.response_cache import CacheStatistics, ResponseCache, ServableCache, _size
from inferd_server.request import Content
from inferd_server.scheduling.work import Layout

ONE = [np.zeros(1000, np.uint8)]
SIZE = _size(ONE)


def outputs(value: int, elements: int = 1000) -> list[Tensor]:
    return [np.full(elements, value, np.uint8)]


def opened(cache: ResponseCache, name: str = "m", version: int = 1) -> ServableCache:
    handle = cache.open(name, version)
    assert handle is not None
    return handle


def kept(handle: ServableCache, digests: Sequence[bytes]) -> list[bytes]:
    return [digest for digest in digests if handle.get(digest) is not None]


def test_the_least_recently_used_goes_first_over_all_models() -> None:
    cache = ResponseCache(3 * SIZE)
    one, other = opened(cache), opened(cache, "n")
    one.put(b"a", outputs(1))
    other.put(b"b", outputs(2))
    one.put(b"c", outputs(3))
    assert one.get(b"a") is not None
    one.put(b"d", outputs(4))
    assert (kept(one, [b"a", b"c", b"d"]), kept(other, [b"b"])) == ([b"a", b"c", b"d"], [])
    assert (len(cache), cache.used_bytes) == (3, 3 * SIZE)


def test_room_is_made_for_one_that_is_as_large_as_many() -> None:
    cache = ResponseCache(200 * SIZE)
    handle = opened(cache)
    for number in range(200):
        handle.put(b"%d" % number, outputs(1))
    handle.put(b"large", outputs(2, 150_000))
    assert handle.get(b"large") is not None
    assert handle.get(b"199") is not None
    assert handle.get(b"0") is None
    assert cache.used_bytes <= 200 * SIZE


def test_what_is_larger_than_the_cache_is_not_kept_and_nothing_goes_for_it() -> None:
    cache = ResponseCache(SIZE)
    handle = opened(cache)
    handle.put(b"a", outputs(1))
    handle.put(b"b", outputs(2, 1001))
    assert kept(handle, [b"a", b"b"]) == [b"a"]
    assert cache.statistics("m", 1).insertions == 1


def test_what_is_kept_is_a_copy_that_nobody_can_change() -> None:
    cache = ResponseCache(SIZE * 10)
    handle = opened(cache)
    batch = np.arange(12, dtype=np.float32).reshape(4, 3)
    handle.put(b"a", [batch[:, :1], batch[1:3].T])
    batch[:] = 0
    found = handle.get(b"a")
    assert found is not None
    assert found[0].tolist() == [[0], [3], [6], [9]]
    assert all(array.flags.c_contiguous and not array.flags.writeable for array in found)
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 1


def test_texts_count_by_their_length() -> None:
    cache = ResponseCache(5000)
    handle = opened(cache)
    handle.put(b"a", [np.array([b"x" * 10_000], object)])
    assert handle.get(b"a") is None
    handle.put(b"a", [np.array([b"x" * 1000], object)])
    assert handle.get(b"a") is not None
    assert cache.used_bytes > 1000


def test_the_same_digest_replaces_and_is_counted_once() -> None:
    cache = ResponseCache(10 * SIZE)
    handle = opened(cache)
    handle.put(b"a", outputs(1))
    handle.put(b"a", outputs(2))
    assert cache.used_bytes == SIZE
    assert handle.get(b"a")[0][0] == 2  # type: ignore[index]


def test_a_version_loaded_again_finds_nothing_and_the_former_one_keeps_nothing_more() -> None:
    cache = ResponseCache(1000 * SIZE)
    former, later = opened(cache), opened(cache)
    for number in range(100):
        former.put(b"%d" % number, outputs(1))
    later.put(b"x", outputs(2))
    assert later.get(b"1") is None
    former.close()
    assert (len(cache), cache.used_bytes) == (1, SIZE)
    former.put(b"1", outputs(1))
    assert former.get(b"1") is None
    assert later.get(b"x") is not None
    later.close()
    assert (len(cache), cache.used_bytes) == (0, 0)


def test_without_room_there_is_no_handle_and_one_warning_a_model(caplog: pytest.LogCaptureFixture) -> None:
    cache = ResponseCache(0)
    with caplog.at_level(logging.WARNING):
        assert [cache.open("m", 1), cache.open("m", 2), cache.open("n", 1)] == [None] * 3
    assert [record.getMessage().partition(" asks")[0] for record in caplog.records] == ["model 'm'", "model 'n'"]
    assert "--response-cache-bytes" in caplog.text


def test_hits_and_misses_are_counted_with_their_time_over_every_load() -> None:
    ticks = itertools.count(0, 10)
    cache = ResponseCache(10 * SIZE, lambda: next(ticks))
    assert cache.statistics("m", 1) == CacheStatistics()
    handle = opened(cache)
    assert handle.get(b"a") is None
    handle.put(b"a", outputs(1))
    assert handle.get(b"a") is not None
    handle.close()
    found = cache.statistics("m", 1)
    assert found == CacheStatistics(hits=1, hit_ns=10, misses=1, miss_ns=10, insertions=1, insertion_ns=10)
    assert opened(cache).get(b"a") is None
    assert cache.statistics("m", 1) == replace(found, misses=2, miss_ns=20)
    assert cache.statistics("m", 2) == CacheStatistics()


def test_memory_stays_within_the_bound_whatever_is_kept() -> None:
    bound = 4 * 1024 * 1024
    chance = random.Random(1)
    tracemalloc.start()
    cache = ResponseCache(bound)
    handles = [opened(cache, "m", version) for version in range(3)]
    for number in range(20_000):
        elements = chance.choice([1, 10, 100, 1000, 100_000])
        made: list[Tensor] = [np.zeros(elements, np.uint8)]
        if number % 3 == 0:
            made.append(np.array([bytes(chance.randrange(50)) for _ in range(5)], object))
        chance.choice(handles).put(number.to_bytes(32, "little"), made)
        assert cache.used_bytes <= bound
    del made
    assert tracemalloc.get_traced_memory()[0] < 1.05 * bound
    assert cache.used_bytes > 0.9 * bound
    tracemalloc.stop()


def test_threads_that_keep_look_up_and_retire_leave_it_in_order() -> None:
    cache = ResponseCache(50 * SIZE)
    wrong: list[object] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(30):
            handle = opened(cache)
            for _ in range(100):
                value = chance.randrange(20)
                found = handle.get(b"%d" % value)
                if found is None:
                    handle.put(b"%d" % value, outputs(value))
                elif found[0][0] != value:
                    wrong.append(found)
            handle.close()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (len(cache), cache.used_bytes) == (0, 0)
    counted = cache.statistics("m", 1)
    assert counted.hits + counted.misses == 4 * 30 * 100


FP32, TEXT = BY_NAME["FP32"].numpy, BY_NAME["BYTES"].numpy


def layout(*row_shapes: tuple[int, ...], dtypes: Sequence[np.dtype] = (FP32, FP32)) -> Layout:
    return Layout.of(dtypes, row_shapes, batched=True)


def text(*elements: bytes) -> Tensor:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array


def test_raw_and_typed_contents_of_the_same_elements_are_alike() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = memoryview(b"\x00" + array.tobytes())[1:]
    assert digest(layout((3,)), 2, [raw]) == digest(layout((3,)), 2, [array])
    assert digest(layout((3,)), 2, [array.T.copy().T]) == digest(layout((3,)), 2, [array])


def test_whatever_differs_in_contents_shape_or_division_is_told_apart() -> None:
    raw = bytes(range(24))
    requests: list[tuple[Layout, int, list[Content]]] = [
        (layout((3,)), 2, [memoryview(raw)]),
        (layout((2,)), 3, [memoryview(raw)]),
        (layout((6,)), 1, [memoryview(raw)]),
        (layout((3, 1)), 2, [memoryview(raw)]),
        (layout((3,)), 2, [memoryview(raw[::-1])]),
        (layout((1,), (2,)), 2, [memoryview(raw[:8]), memoryview(raw[8:])]),
        (layout((2,), (1,)), 2, [memoryview(raw[:16]), memoryview(raw[16:])]),
        (layout((0,), (3,)), 2, [memoryview(b""), memoryview(raw)]),
        (layout((3,), (0,)), 2, [memoryview(raw), memoryview(b"")]),
        (layout((), dtypes=[TEXT]), 2, [text(b"ab", b"c")]),
        (layout((), dtypes=[TEXT]), 2, [text(b"a", b"bc")]),
        (layout((), dtypes=[TEXT]), 2, [text(b"abc", b"")]),
        (layout((), dtypes=[TEXT]), 2, [text(b"", b"abc")]),
        (layout((), dtypes=[TEXT]), 1, [text(b"abc")]),
        # An element that looks like the border between two.
        (layout((), dtypes=[TEXT]), 1, [text(b"ab\x01\x00\x00\x00c")]),
        (layout((), (), dtypes=[TEXT, TEXT]), 1, [text(b"ab"), text(b"c")]),
        (layout((), (), dtypes=[TEXT, TEXT]), 1, [text(b"a"), text(b"bc")]),
    ]
    assert len({digest(*request) for request in requests}) == len(requests)
    assert len({digest(*request) for request in requests * 2}) == len(requests)
