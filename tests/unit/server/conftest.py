"""Shared memory for one test, with a region registered in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from inferd_server.shared_memory.regions import Regions
from inferd_server.shared_memory.system import register
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
