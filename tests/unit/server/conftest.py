"""What several files need: shared memory with a region registered in it, and sequence batchers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from inferd_server.shared_memory.regions import Regions
from inferd_server.shared_memory.system import register
from support.sequences import Bench
from support.shared_memory import DATA, shared_object


@pytest.fixture
def key() -> Iterator[str]:
    with shared_object(256, DATA) as path:
        yield path.name


@pytest.fixture
def regions(key: str) -> Regions:
    """With region `r`: bytes 16 to 216 of DATA."""
    made = Regions(most=4)
    register(made, "r", key, 16, 200)
    return made


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(*arguments: object, **options: object) -> Bench:
        benches.append(Bench(*arguments, **options))  # type: ignore[arg-type]
        return benches[-1]

    yield build
    for bench in benches:
        assert bench.batcher.close(1.0)


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
