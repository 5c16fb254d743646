"""What a run found, as it is written to JSON and read back: the report and the plots are made of this alone."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.limit import Limit
from benchmarks.load import Load
from benchmarks.open_loop import OpenLoad
from benchmarks.payload import Shape
from benchmarks.spread import Spread, spread


@dataclass(frozen=True, slots=True)
class LimitSample:
    """ONNX Runtime in process, in one round."""

    round: int
    datatype: str
    limit: Limit


@dataclass(frozen=True, slots=True)
class ClosedSample:
    """One server under one closed-loop load, in one round."""

    round: int
    server: str
    shape: Shape
    in_flight: int
    load: Load


@dataclass(frozen=True, slots=True)
class OpenSample:
    """One server under one open-loop load, in one round. `share` is that of its own peak, None for a fixed rate."""

    round: int
    server: str
    share: float | None
    load: OpenLoad


@dataclass(frozen=True, slots=True)
class MemorySample:
    """One server after all of its loads of one round, summed over its processes."""

    round: int
    server: str
    peak_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A peer's setting that was tried before the rounds: one-row requests/s at 32 in flight, or why it has none."""

    server: str
    setting: str
    requests_per_s: float | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be measured, by name, and why."""

    server: str
    what: str
    reason: str


@dataclass(slots=True)
class Results:
    """A run. `machine` and `settings` say on what and how; `extras` has the figures of the scenarios, one a round."""

    machine: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    servers: dict[str, str] = field(default_factory=dict)
    """The setting that each server was measured with, in the order of the report."""
    limits: list[LimitSample] = field(default_factory=list)
    closed: list[ClosedSample] = field(default_factory=list)
    opened: list[OpenSample] = field(default_factory=list)
    memory: list[MemorySample] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    extras: dict[str, list[float]] = field(default_factory=dict)

    def add_extra(self, name: str, value: float) -> None:
        """One more round's figure of a scenario."""
        self.extras.setdefault(name, []).append(value)

    def extra(self, name: str) -> list[float]:
        """A scenario's figures; empty where it did not run."""
        return self.extras.get(name, [])

    def loads(self, server: str, shape: Shape, in_flight: int) -> list[Load]:
        """A cell of the closed loop, in the order of its rounds."""
        return [
            sample.load
            for sample in self.closed
            if (sample.server, sample.shape, sample.in_flight) == (server, shape, in_flight)
        ]

    def figure(self, server: str, shape: Shape, in_flight: int, name: str = "requests_per_s") -> Spread | None:
        """One figure of a cell over its rounds; None where it was not measured."""
        values = [float(getattr(load, name)) for load in self.loads(server, shape, in_flight)]
        return spread(values) if values else None

    def best(self, server: str, shape: Shape, in_flights: Iterable[int]) -> tuple[int, Spread] | None:
        """The concurrency at which a server's median rate is highest, and that rate."""
        found = [(count, rate) for count in in_flights if (rate := self.figure(server, shape, count))]
        return max(found, key=lambda pair: pair[1].median) if found else None

    def limit(self, datatype: str, rows: int, name: str = "rows_per_s") -> Spread | None:
        """One figure of the limit over its rounds; None where it was not measured."""
        values = [
            float(getattr(sample.limit, name))
            for sample in self.limits
            if (sample.datatype, sample.limit.rows) == (datatype, rows)
        ]
        return spread(values) if values else None

    def best_limit(self, datatype: str) -> tuple[int, Spread] | None:
        """The size of run at which ONNX Runtime's median rate is highest, and its rows/s: the limit."""
        sizes = sorted({sample.limit.rows for sample in self.limits})
        found = [(rows, rate) for rows in sizes if (rate := self.limit(datatype, rows))]
        return max(found, key=lambda pair: pair[1].median) if found else None

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def without_places(reason: str) -> str:
    """A reason on one line, without this machine's paths and addresses: reports are published."""
    for folder in (str(Path.cwd()), sys.prefix, sys.base_prefix, str(Path.home())):
        reason = reason.replace(folder + "/", "")
    return " ".join(re.sub(r"\b(https?|file)://\S+", "(address)", reason).split())


def read(path: Path) -> Results:
    """What `Results.write` wrote."""
    data = json.loads(path.read_text())
    return Results(
        machine=data["machine"],
        settings=data["settings"],
        servers=data["servers"],
        limits=[LimitSample(**{**item, "limit": Limit(**item["limit"])}) for item in data["limits"]],
        closed=[
            ClosedSample(**{**item, "shape": Shape(**item["shape"]), "load": Load(**item["load"])})
            for item in data["closed"]
        ],
        opened=[OpenSample(**{**item, "load": OpenLoad(**item["load"])}) for item in data["opened"]],
        memory=[MemorySample(**item) for item in data["memory"]],
        trials=[Trial(**item) for item in data["trials"]],
        failures=[Failure(**item) for item in data["failures"]],
        extras=data["extras"],
    )
