"""Which candidate is taken: the fastest of those that are still right, and none where none is faster.

Speed is the geometric mean of the gains over the original at 1, 8 and 64 rows, each the median of rounds in which the
models take turns. Right is what `gate` says of the classes that a candidate gives on the held-out rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from inferd_training import gate
from inferd_training.errors import OptimiseError
from inferd_training.gate import Comparison
from inferd_training.optimise import sessions
from inferd_training.optimise.candidates import Candidate
from inferd_training.optimise.sessions import Timing

ROUNDS = 15
LEAST_GAIN = 1.02
"""What is not faster by as much is not worth a new version: it is no more than the spread of two runs of one model."""

ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that no candidate was made of: inputs by name, the output whose largest element is the class, and the true
    classes, [rows]. `measured_by_original`: the truth is not known, and the original's answers are taken for it."""

    inputs: Mapping[str, NDArray[Any]]
    output: str
    truth: NDArray[np.integer[Any]]
    labels: tuple[str, ...]
    description: str
    measured_by_original: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A candidate with its figures. `gains` are over the original, by rows a run; `refused`: why it is not one."""

    candidate: Candidate
    nbytes: int
    timings: Mapping[int, Timing]
    gains: Mapping[int, float]
    comparison: Comparison
    refused: str

    @property
    def speed(self) -> float:
        """The geometric mean of the gains."""
        return sessions.overall(self.gains)


def judge(
    original: onnx.ModelProto,
    candidates: Sequence[Candidate],
    held_out: HeldOut,
    *,
    max_drop_points: float,
    min_agreement: float,
    threads: int,
) -> list[Judged]:
    """All candidates with their figures, the original first, in the order they came.

    A candidate that ONNX Runtime does not run is refused with that reason, and has no figures: it is left out.
    Raises OptimiseError where the original itself does not run.
    """
    loaded = {ORIGINAL: sessions.load(original, threads)}
    expected = loaded[ORIGINAL].answers(held_out.inputs)[held_out.output].argmax(axis=-1)
    by_name = {ORIGINAL: Candidate(ORIGINAL, original, "nothing")}
    classes = {ORIGINAL: expected}
    for candidate in candidates:
        session = sessions.load(candidate.proto, threads)
        answers = session.answers(held_out.inputs)[held_out.output]
        if not np.isfinite(answers).all():
            raise OptimiseError(f"the candidate '{candidate.name}' gives answers that are not finite")
        loaded[candidate.name], by_name[candidate.name] = session, candidate
        classes[candidate.name] = answers.argmax(axis=-1)
    feeds = sessions.feeds(held_out.inputs)
    times = sessions.timings(loaded, feeds, ROUNDS)
    judged = []
    for name, candidate in by_name.items():
        comparison = gate.compare(expected, classes[name], held_out.truth, held_out.labels)
        gains = (
            dict.fromkeys(feeds, 1.0)
            if name == ORIGINAL
            else sessions.gains(loaded[ORIGINAL], loaded[name], feeds, ROUNDS)
        )
        nbytes = candidate.proto.ByteSize()
        refused = "" if name == ORIGINAL else gate.passes(comparison, max_drop_points)
        if not refused and comparison.agreement < min_agreement:
            refused = (
                f"it gives the original's class to {comparison.agreement:.2%} of the rows, where at least "
                f"{min_agreement:.2%} were expected"
            )
        judged.append(Judged(candidate, nbytes, times[name], gains, comparison, refused))
    return judged


def choose(judged: Sequence[Judged], notes: Sequence[str] = ()) -> Judged:
    """The fastest that passes. Raises OptimiseError where none is faster than the original.

    `notes` say why candidates are missing, should there be none.
    """
    passing = [one for one in judged if not one.refused and one.candidate.name != ORIGINAL]
    best = max(passing, key=lambda one: one.speed, default=None)
    if best is None or best.speed < LEAST_GAIN:
        fastest = max((one for one in judged if one.refused), key=lambda one: one.speed, default=None)
        reasons = []
        if best is not None:
            reasons.append(f"the fastest that is right, '{best.candidate.name}', runs {best.speed:.2f} times as fast")
        if fastest is not None:
            reasons.append(f"'{fastest.candidate.name}' ({fastest.speed:.2f}x) was refused: {fastest.refused}")
        if not reasons:
            reasons = [": ".join(["there was no candidate", *(["; ".join(notes)] if notes else [])])]
        raise OptimiseError(f"nothing beats the original by {LEAST_GAIN:g}x ({'; '.join(reasons)}): serve the original")
    return best
