"""Which session options win, with made-up times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from inferd_server.runtime import choosing
from inferd_server.runtime.backend import GraphLevel, SessionSettings
from inferd_server.runtime.choosing import DISABLED_OPTIMIZERS, NCHWC, SPINNING, STOP_SPINNING, Cost, choose, describe

DEFAULT = SessionSettings(intra_op_threads=4)


def cost(value: float) -> Cost:
    return Cost(value, value)


def by(price: Callable[[SessionSettings], float]) -> choosing.Duel:
    """A duel in which settings cost what `price` says, at two sizes."""
    return lambda first, second: [(cost(price(first)), cost(price(second)))] * 2


def test_nothing_is_changed_where_nothing_is_faster() -> None:
    assert choose(DEFAULT, 4, by(lambda _: 100)) == DEFAULT


def test_the_default_stays_where_nothing_can_be_compared() -> None:
    assert choose(DEFAULT, 4, lambda _, __: None) == DEFAULT


def test_each_option_that_pays_is_taken() -> None:
    def price(settings: SessionSettings) -> float:
        value = 100.0 + 10 * abs(settings.intra_op_threads - 2)
        value *= 0.9 if settings.entries.get(SPINNING) == "1" else 1
        value *= 0.9 if not settings.memory_pattern else 1
        value *= 0.9 if not settings.memory_arena else 1
        return value * (0.9 if settings.entries.get(DISABLED_OPTIMIZERS) == NCHWC else 1)

    chosen = choose(DEFAULT, 4, by(price))
    assert (chosen.intra_op_threads, chosen.memory_pattern, chosen.memory_arena) == (2, False, False)
    assert chosen.entries == {DISABLED_OPTIMIZERS: NCHWC, SPINNING: "1", STOP_SPINNING: "1"}
    assert chosen.parallel is False


def test_the_graph_level_is_tried_where_the_layout_stays() -> None:
    chosen = choose(DEFAULT, 4, by(lambda settings: 50 if settings.graph_level is GraphLevel.EXTENDED else 100))
    assert chosen == replace(DEFAULT, graph_level=GraphLevel.EXTENDED)


@pytest.mark.parametrize(
    "settings",
    [
        replace(DEFAULT, explicit=frozenset({"intra_op_threads", "graph_level", "memory_pattern", "memory_arena"})),
        replace(DEFAULT, explicit=frozenset({"intra_op_threads"})),
        replace(DEFAULT, entries={SPINNING: "0", DISABLED_OPTIMIZERS: "x"}),
    ],
    ids=["all fields", "threads", "entries"],
)
def test_what_is_set_is_never_tried(settings: SessionSettings) -> None:
    tried: list[SessionSettings] = []

    def duel(_: SessionSettings, challenger: SessionSettings) -> None:
        tried.append(challenger)

    choose(settings, 4, duel)
    for challenger in tried:
        for name in settings.explicit:
            assert getattr(challenger, name) == getattr(settings, name)
        assert {key: challenger.entries[key] for key in settings.entries} == settings.entries


@pytest.mark.parametrize(("allowed", "tried"), [(1, set()), (2, {1}), (3, {1, 2}), (8, {1, 2, 4})])
def test_threads_are_powers_of_two_up_to_those_allowed(allowed: int, tried: set[int]) -> None:
    seen: set[int] = set()

    def duel(champion: SessionSettings, challenger: SessionSettings) -> None:
        if challenger.intra_op_threads != champion.intra_op_threads:
            seen.add(challenger.intra_op_threads)

    choose(SessionSettings(intra_op_threads=allowed), allowed, duel)
    assert seen == tried


def test_one_thread_does_not_spin() -> None:
    def duel(_: SessionSettings, challenger: SessionSettings) -> None:
        assert SPINNING not in challenger.entries

    choose(SessionSettings(intra_op_threads=1), 1, duel)


@pytest.mark.parametrize(
    ("ratios", "won"),
    [
        ([0.5, 0.5], True),
        ([0.96, 0.96], True),
        ([0.98, 0.98], False),
        ([0.5, 1.04], True),
        ([0.5, 1.06], False),
        ([1.0, 1.0], False),
        ([], False),
    ],
)
def test_a_win_is_clear_and_nowhere_paid_for(ratios: Sequence[float], won: bool) -> None:
    assert choosing.wins([(cost(100), cost(100 * ratio)) for ratio in ratios]) is won


def test_cpu_time_counts_as_much_as_waiting() -> None:
    """Four threads that halve the wait and take three times the CPU from everybody else are no gain."""
    assert not choosing.wins([(Cost(100, 100), Cost(50, 300))])
    assert choosing.wins([(Cost(100, 100), Cost(50, 110))])


def test_what_was_chosen_reads_like_a_config() -> None:
    assert describe(DEFAULT, DEFAULT) == "default"
    entries = {SPINNING: "1"}
    chosen = SessionSettings(2, 1, False, False, False, GraphLevel.EXTENDED, entries)
    assert describe(DEFAULT, chosen) == (
        "intra_op_thread_count=2 enable_mem_pattern=0 enable_mem_arena=0 graph_level=extended "
        "session.intra_op.allow_spinning=1"
    )
