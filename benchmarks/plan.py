"""How much is measured: the full run and the quick one."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.payload import Shape

ONE, MANY = Shape("FP32", 1), Shape("FP32", 64)
ONE_BYTE, MANY_BYTE = Shape("UINT8", 1), Shape("UINT8", 64)
IN_FLIGHT = (1, 8, 32, 128)
RATES = (100.0, 300.0, 1000.0, 3000.0, 6000.0, 9000.0, 12000.0)
"""Open loop, requests/s; a server gets those that its own peak lets it keep up with."""

PEAK_SHARE = 0.7
MOST_SHARE = 0.9

Cell = tuple[Shape, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """`rounds` over all servers; in each, `cells` of the closed loop and `rates` of the open loop. Times in seconds."""

    rounds: int
    seconds: float
    open_seconds: float
    cells: tuple[Cell, ...]
    rates: tuple[float, ...]
    soak_seconds: float
    echo_cells: tuple[Cell, ...]
    echo_rates: tuple[float, ...]
    scenario_rounds: int
    copies: int = 100
    idle: int = 1000


FULL_CELLS = (
    *((shape, in_flight) for shape in (ONE, MANY) for in_flight in IN_FLIGHT),
    (ONE_BYTE, 32),
    (ONE_BYTE, 128),
    (MANY_BYTE, 8),
)
QUICK_CELLS = (*((ONE, in_flight) for in_flight in IN_FLIGHT), (MANY, 8), (ONE_BYTE, 32))


def full(rounds: int, seconds: float, soak_seconds: float) -> Plan:
    """Everything."""
    echo_cells = tuple((ONE, in_flight) for in_flight in IN_FLIGHT)
    return Plan(rounds, seconds, 2.0, FULL_CELLS, RATES, soak_seconds, echo_cells, RATES, rounds)


def quick(rounds: int, seconds: float, soak_seconds: float) -> Plan:
    """Enough to see what a change did."""
    return Plan(rounds, seconds, 1.0, QUICK_CELLS, (1000.0,), soak_seconds, ((ONE, 32),), (), 1)
