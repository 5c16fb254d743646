"""What the optimised model is chosen from: each a whole model, made of the original or of a smaller one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from numpy.typing import NDArray

from inferd_training.errors import OptimiseError
from inferd_training.optimise import quantise, sessions
from inferd_training.optimise.graph.int8 import int8_operators
from inferd_training.optimise.graph.simplify import simplify
from inferd_training.optimise.half import half
from inferd_training.optimise.quantise import Calibration, Ranges
from inferd_training.optimise.search import Found, groups, search
from inferd_training.optimise.variants import dense_whole, named, pool_first

Tell = Callable[[str], None]

_LONGEST_RUN_SECONDS = 0.02
"""Batches that take longer are left out of the search, though not of the judgement: a search is many runs."""
_ROUNDS = 5
"""Of a comparison during the search: an odd number, whose median one disturbed round does not move."""
_SIZE_EXPONENT = 0.04
"""What being smaller is worth in the search: a file of a quarter counts as one that is 1.06 times as fast. So weights
whose product is as fast either way become INT8, and what has none to speak of is judged by the clock alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A model to choose. `how` is what was done to it, one line; `moves` are the steps of its search."""

    name: str
    proto: onnx.ModelProto
    how: str
    moves: tuple[str, ...] = ()
    int8_nodes: tuple[str, ...] = ()


@dataclass(slots=True)
class Workshop:
    """What candidates are made with: calibration rows by input name ([rows, ...], None where there are none), the time
    that all searches together may take, and the threads of a run."""

    calibration: Mapping[str, NDArray[Any]] | None
    samples: Mapping[str, NDArray[Any]]
    seconds: float
    threads: int
    tell: Tell
    notes: list[str] = field(default_factory=list)
    """What was skipped, and why."""

    def candidates(self, label: str, original: onnx.ModelProto) -> list[Candidate]:
        """All that is made of one model; `label` begins their names, empty for the original."""
        prefix = f"{label} " if label else ""
        operators = int8_operators(original)
        if operators:
            self.notes.append(f"{prefix}the model is INT8 already ({', '.join(operators)}): nothing is made of it")
            return []
        simplified = simplify(original)
        self.notes.extend(f"{prefix}graph: {note}" for note in simplified.notes)
        plain = named(simplified.proto)
        made = [Candidate(f"{prefix}graph", plain, "graph simplified")]
        made += self._half(prefix, plain)
        self.tell(f"{prefix}searching which nodes pay in INT8")
        made += self._static(prefix, plain)
        made += self._dynamic(prefix, plain)
        return made

    def _half(self, prefix: str, plain: onnx.ModelProto) -> list[Candidate]:
        try:
            return [
                Candidate(f"{prefix}FP16", half(plain), "weights and sums in FP16, inputs and outputs as they were")
            ]
        except OptimiseError as error:
            self.notes.append(f"{prefix}FP16: {error}")
            return []

    def _static(self, prefix: str, plain: onnx.ModelProto) -> list[Candidate]:
        whole = dense_whole(plain)
        nodes = quantise.static_nodes(whole)
        if not nodes:
            self.notes.append(f"{prefix}static INT8: the model has no node that it can take")
            return []
        if self.calibration is None:
            self.notes.append(
                f"{prefix}static INT8: skipped, since there are no calibration rows: give some by --calibration"
            )
            return []
        moved, count = pool_first(whole)
        written = [whole, moved] if count else [whole]
        try:
            ranges = [quantise.calibrate(proto, self.calibration, Calibration.MIN_MAX) for proto in written]
            made = [
                self._candidate(f"{prefix}INT8 everywhere", whole, ranges[0], frozenset(nodes), Calibration.MIN_MAX)
            ]
        except OptimiseError as error:
            self.notes.append(f"{prefix}static INT8: skipped: {error}")
            return []
        best: tuple[float, onnx.ModelProto, Found] | None = None
        for proto, of_tensors in zip(written, ranges, strict=True):
            found, gain = self._search(plain, proto, nodes, functools.partial(quantise.static, proto, of_tensors))
            if found.nodes and (best is None or gain > best[0]):
                best = gain, proto, found
        if best is None:
            self.notes.append(f"{prefix}static INT8: no node pays on this machine")
            return made
        _, proto, found = best
        self._note_time(prefix, found)
        for method in Calibration:
            try:
                of_tensors = quantise.calibrate(proto, self.calibration, method, found.nodes)
                made.append(
                    self._candidate(
                        f"{prefix}INT8 mixed, {method}", proto, of_tensors, found.nodes, method, found.moves
                    )
                )
            except OptimiseError as error:
                self.notes.append(f"{prefix}static INT8 by {method}: {error}")
        return made

    def _candidate(
        self,
        name: str,
        proto: onnx.ModelProto,
        ranges: Ranges,
        nodes: frozenset[str],
        method: Calibration,
        moves: Sequence[str] = (),
    ) -> Candidate:
        made = quantise.static(proto, ranges, nodes)
        how = f"static INT8 of {len(nodes)} nodes, ranges by {method}, weights per channel"
        return Candidate(name, made, how, tuple(moves), tuple(sorted(nodes)))

    def _dynamic(self, prefix: str, plain: onnx.ModelProto) -> list[Candidate]:
        nodes = quantise.dynamic_nodes(plain)
        if not nodes:
            self.notes.append(f"{prefix}dynamic INT8: the model has no node that it can take")
            return []
        made = list[Candidate]()
        ways = {"per channel": True, "per tensor": False}
        try:
            for way, per_channel in ways.items():
                how = f"dynamic INT8 of {len(nodes)} nodes, weights {way}"
                everything = quantise.dynamic(plain, nodes, per_channel=per_channel)
                made.append(Candidate(f"{prefix}INT8 dynamic, {way}", everything, how, (), nodes))
            # ONNX Runtime's LSTM scales by channel one value at a time: which way is faster depends on the operators.
            one, other = (sessions.load(candidate.proto, self.threads) for candidate in made)
            gained = sessions.gains(one, other, self._feeds(one), _ROUNDS)
        except OptimiseError as error:
            self.notes.append(f"{prefix}dynamic INT8: skipped: {error}")
            return []
        way = "per tensor" if sessions.overall(gained) > 1 else "per channel"
        build = functools.partial(quantise.dynamic, plain, per_channel=ways[way])
        found, _ = self._search(plain, plain, nodes, build)
        self._note_time(prefix, found)
        if found.nodes and found.nodes != frozenset(nodes):
            how = f"dynamic INT8 of {len(found.nodes)} of {len(nodes)} nodes, weights {way}"
            mixed = build(found.nodes)
            made.append(Candidate(f"{prefix}INT8 dynamic, mixed", mixed, how, found.moves, tuple(sorted(found.nodes))))
        return made

    def _feeds(self, session: sessions.Session) -> Mapping[int, sessions.Feed]:
        """The batches that a search times: of those that one run of this model is short enough for, or the smallest."""
        feeds = sessions.feeds(self.samples)
        quick = {rows: feed for rows, feed in feeds.items() if session.seconds(feed, 1) <= _LONGEST_RUN_SECONDS}
        return quick or dict([min(feeds.items())])

    def _search(
        self,
        plain: onnx.ModelProto,
        proto: onnx.ModelProto,
        nodes: Sequence[str],
        build: Callable[[frozenset[str]], onnx.ModelProto],
    ) -> tuple[Found, float]:
        """The best set of nodes, and how many times as good as `plain` it is: in time, and a little in size."""
        plain_session = sessions.load(plain, self.threads)
        feeds = self._feeds(plain_session)
        kept: dict[frozenset[str], tuple[sessions.Session, int]] = {}

        def loaded(chosen: frozenset[str]) -> tuple[sessions.Session, int]:
            if chosen not in kept:
                made = build(chosen) if chosen else proto
                kept[chosen] = sessions.load(made, self.threads), made.ByteSize()
            return kept[chosen]

        def better(before: tuple[sessions.Session, int], after: tuple[sessions.Session, int]) -> float:
            gained = sessions.overall(sessions.gains(before[0], after[0], feeds, _ROUNDS))
            return float(gained * (before[1] / after[1]) ** _SIZE_EXPONENT)

        def evaluate(before: frozenset[str], after: frozenset[str]) -> float:
            found = better(loaded(before), loaded(after))
            for chosen in [known for known in kept if known not in (before, after)]:
                del kept[chosen]
            return found

        found = search(groups(proto, nodes), evaluate, self.seconds)
        return found, better((plain_session, plain.ByteSize()), loaded(found.nodes))

    def _note_time(self, prefix: str, found: Found) -> None:
        if not found.complete:
            self.notes.append(
                f"{prefix}the search was cut short after {self.seconds:g} s: --search-seconds allows more"
            )
