from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from inferd_server.frontend.sampling import Sampler, Sampling


@pytest.mark.parametrize(
    ("rate", "count", "taken"),
    [
        (1, -1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (3, -1, [2, 5]),
        (2, 1, [1]),
        (1, 2, [0, 1]),
        (1, 0, []),
        (0, -1, []),
    ],
)
def test_one_in_so_many_until_so_many_were_taken(rate: int, count: int, taken: list[int]) -> None:
    sampler = Sampler(Sampling(on=True, rate=rate, count=count))
    assert [number for number in range(8) if sampler.takes()] == taken


def test_threads_together_take_no_more_than_one_would() -> None:
    sampler = Sampler(Sampling(on=True, rate=10, count=70))
    with ThreadPoolExecutor(8) as pool:
        taken = sum(pool.map(lambda _: sum(sampler.takes() for _ in range(1000)), range(8)))
    assert taken == 70
