"""From a verified export to a faster one that is proved equal: candidates, judgement, and an export of the winner."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from inferd_protocol.artefact import GOLDEN_FILE, MODEL_FILE, OPTIMISATION_KEY, REPORT_FILE

from inferd_training import gate
from inferd_training.errors import OptimiseError
from inferd_training.export.golden import write_golden
from inferd_training.export.metadata import versions
from inferd_training.export.parity import Tolerance
from inferd_training.export.report import check_report, external_files
from inferd_training.export.runtime import PROVIDER, Runtime, version
from inferd_training.export.samples import Samples
from inferd_training.export.structure import check_structure
from inferd_training.export.weights import EXTERNAL_FROM
from inferd_training.files import hidden_folder, holds_only, replace_folder, sha256, write_json
from inferd_training.optimise import judge, report, rows, sessions
from inferd_training.optimise.candidates import Candidate, Workshop
from inferd_training.optimise.judge import Judged
from inferd_training.optimise.rows import Rows

TABLE_FILE = "optimisation.md"
PLOT_FILE = "optimisation.png"
_GOLDEN_FROM = 256
"""Held-out rows that golden samples are taken from."""
_FILES = {MODEL_FILE, GOLDEN_FILE, REPORT_FILE, TABLE_FILE, PLOT_FILE}

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What to optimise. `also` are exports of smaller models that were trained to take the original's place: they are
    candidates as they are, and their optimised forms are. The gate holds all of them against the original.

    `max_drop_points` of accuracy may be lost, and `min_agreement` of the rows must keep the original's class.
    `search_seconds` bounds each of the searches.
    """

    export: Path
    output: Path
    data_folder: Path | None = None
    calibration: Path | None = None
    evaluation: Path | None = None
    also: tuple[Path, ...] = ()
    max_drop_points: float = 0.1
    min_agreement: float = 0.0
    search_seconds: float = 40.0
    threads: int = 1


def optimise(job: Job, tell: Tell = lambda _line: None) -> tuple[dict[str, Any], str]:
    """Writes the winner to `job.output` as an export, with the table and the plot beside it; the report, and the table.

    Raises OptimiseError where nothing beats the original, and then leaves the table and the plot alone in `output`;
    DataError, VerificationError or ModelError as their makers do, and then leaves `output` as it was.
    """
    gate.check_budget(job.max_drop_points)
    for folder in (job.export, *job.also):
        if job.output.resolve() == folder.resolve():
            raise OptimiseError(f"{job.output} is an export that is looked at: give another folder for the outcome")
    if job.output.exists() and not (job.output.is_dir() and holds_only(job.output, _FILES)):
        raise OptimiseError(
            f"{job.output} holds other files than an earlier optimisation's: give an empty or new folder"
        )
    original, parent = _read(job.export)
    given = _rows(job, parent, original, tell)
    workshop = Workshop(
        given.calibration,
        given.calibration or given.held_out.inputs,
        job.search_seconds,
        job.threads,
        tell,
    )
    candidates = workshop.candidates("", original)
    for folder in job.also:
        proto, _ = _read(folder)
        _check_fits(proto, original, folder)
        label = folder.name
        candidates.append(Candidate(label, proto, f"trained to take the original's place: {folder.name}"))
        candidates += workshop.candidates(label, proto)
    tell(f"judging {len(candidates)} candidates on {given.held_out.description}")
    judged = judge.judge(
        original,
        candidates,
        given.held_out,
        max_drop_points=job.max_drop_points,
        min_agreement=job.min_agreement,
        threads=job.threads,
    )
    return _write(job, judged, workshop.notes, given, parent)


def _write(
    job: Job, judged: Sequence[Judged], notes: Sequence[str], given: Rows, parent: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    refusal: OptimiseError | None = None
    try:
        chosen = judge.choose(judged, notes)
    except OptimiseError as error:
        chosen, refusal = None, error
    table = report.table(judged, chosen)
    document = report.document(
        judged,
        chosen,
        held_out=given.held_out.description,
        max_drop_points=job.max_drop_points,
        notes=notes,
        machine=machine(job.threads),
    )
    document["parent_sha256"] = parent["model"]["sha256"]
    with hidden_folder(job.output.parent) as scratch:
        new = scratch / "optimised"
        new.mkdir()
        (new / TABLE_FILE).write_text(table, encoding="utf-8")
        report.plot(judged, chosen, new / PLOT_FILE)
        whole = {} if chosen is None else _export(new, chosen, given, parent, document)
        replace_folder(new, job.output, scratch)
    if refusal is not None:
        raise refusal
    return whole, table


def _export(
    folder: Path, chosen: Judged, given: Rows, parent: Mapping[str, Any], document: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the winner as an export, whose golden samples are its own answers."""
    proto = chosen.candidate.proto
    lineage = {
        "parent_sha256": document["parent_sha256"],
        "candidate": chosen.candidate.name,
        "how": chosen.candidate.how,
        "int8_nodes": list(chosen.candidate.int8_nodes),
        "gains": {str(rows): gain for rows, gain in chosen.gains.items()},
        "gate": chosen.comparison.as_json(),
        "held_out": given.held_out.description,
        "machine": document["machine"],
        "versions": versions(),
    }
    kept = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {**kept, OPTIMISATION_KEY: json.dumps(lineage, sort_keys=True)})
    path = folder / MODEL_FILE
    onnx.save(proto, path)
    structure, runtime = check_structure(path, ())
    golden = _golden(folder / GOLDEN_FILE, given, runtime)
    whole = {
        **{key: value for key, value in parent.items() if key not in ("golden", "parity")},
        # The gate passed, or there would be no winner: what is verified is that, and not the parity with Keras.
        "verified": True,
        "model": {
            **parent["model"],
            "sha256": sha256(path),
            "bytes": path.stat().st_size,
            "weights": {},
            "opset": structure.opset,
            "ir_version": structure.ir_version,
            "inputs": structure.inputs,
            "outputs": structure.outputs,
        },
        "optimisation": dict(document),
        "versions": versions(),
        **golden,
    }
    write_json(folder / REPORT_FILE, whole)
    check_report(path, folder / REPORT_FILE)
    return whole


def _golden(path: Path, given: Rows, runtime: Runtime) -> dict[str, Any]:
    rows = {name: array[:_GOLDEN_FROM] for name, array in given.held_out.inputs.items()}
    answers, alone = runtime.run(rows, max(sessions.BATCHES)), runtime.run(rows, 1)
    # Dynamic INT8 takes one range for all rows of a run: a row's answer depends on its company, within this.
    moved = max(float(np.abs(answers[name] - alone[name]).max()) for name in answers)
    allowed = Tolerance(2 * moved, 0.0) if moved else None
    return write_golden(path, Samples(rows, given.held_out.description), alone, runtime, allowed)


def _read(folder: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A verified export and its report. Raises OptimiseError where it is none, VerificationError as check_report."""
    path = folder / MODEL_FILE
    for file in (path, folder / REPORT_FILE):
        if not file.is_file():
            raise OptimiseError(f"{folder} lacks {file.name}, so nothing verified is there: run `inferd export` first")
    found = check_report(path, folder / REPORT_FILE)
    # It is served as it is only where the runtime takes it.
    check_structure(path, ())
    outside = sum((folder / name).stat().st_size for name in external_files(path))
    if outside >= EXTERNAL_FROM:
        raise OptimiseError(
            f"{path} keeps {outside} bytes of weights in other files, where less than {EXTERNAL_FROM} were expected: "
            "candidates are made in memory, as one protobuf message each"
        )
    return onnx.load(path), found


def _rows(job: Job, parent: Mapping[str, Any], original: onnx.ModelProto, tell: Tell) -> Rows:
    if job.evaluation is None:
        if job.calibration is not None:
            raise OptimiseError("--calibration came without --evaluation: give rows to judge by, too")
        return rows.of_known_data(parent, job.data_folder, tell)
    session = sessions.load(original, job.threads)
    return rows.of_files(parent, job.calibration, job.evaluation, session.answers)


def _check_fits(proto: onnx.ModelProto, original: onnx.ModelProto, folder: Path) -> None:
    """Raises OptimiseError where a model cannot take the original's place: its ends are others."""
    for kind in ("input", "output"):
        own, expected = ({end.name: end.type for end in getattr(model.graph, kind)} for model in (proto, original))
        if own != expected:
            raise OptimiseError(
                f"{folder} has the {kind}s {', '.join(own)}, which are not the original's {', '.join(expected)} in "
                "name, dtype and shape: it cannot take the original's place"
            )


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads_a_run": threads,
        "onnxruntime": version(),
        "provider": PROVIDER,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
