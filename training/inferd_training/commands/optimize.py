"""`inferd optimize`: a verified export becomes the fastest model that is still right on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from inferd_protocol.command import CommandError

from inferd_training.commands.shared import add_data, command, tell


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=Path, metavar="DIR", help="the folder that `inferd export` wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    add_data(parser, dataset=False)
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="rows to take INT8 ranges from: .npz, one array an input"
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FILE",
        help="rows to judge by, .npz, with the true classes as 'truth', else the original's answers are the truth; "
        "without it: the test rows of the data that the export names",
    )
    parser.add_argument(
        "--also",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="an export of a smaller model, pruned or distilled, that may take the original's place (repeatable)",
    )
    parser.add_argument(
        "--max-accuracy-drop",
        type=float,
        default=0.1,
        metavar="POINTS",
        help="accuracy that may be lost, percentage points (default: %(default)s)",
    )
    parser.add_argument(
        "--min-agreement",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the rows that must keep the original's class, right or wrong, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads of a run, as the server will have (default: 1)"
    )
    parser.add_argument(
        "--search-seconds",
        type=float,
        default=40.0,
        metavar="S",
        help="longest that each search for INT8 nodes takes (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime-graph",
        type=Path,
        metavar="FILE",
        help="also write the graph that this machine's ONNX Runtime makes of the outcome, to look at: it is derived, "
        "and for no other version or kind of machine",
    )
    parser.add_argument("--repository", type=Path, metavar="DIR", help="publish the outcome there, as the next version")
    parser.add_argument("--name", dest="model", metavar="NAME", help="the model's name there")


def _run(arguments: argparse.Namespace) -> None:
    if (arguments.repository is None) != (arguments.model is None):
        raise CommandError("--repository and --name belong together: give both to publish, or neither")
    if arguments.threads < 1:
        raise CommandError(f"--threads expects at least 1, got {arguments.threads}")
    if not 0 <= arguments.min_agreement <= 1:
        raise CommandError(f"--min-agreement expects a share from 0 to 1, got {arguments.min_agreement}")
    if not arguments.search_seconds > 0:
        raise CommandError(f"--search-seconds expects more than 0, got {arguments.search_seconds}")
    if arguments.runtime_graph is not None and arguments.runtime_graph.is_dir():
        raise CommandError(f"--runtime-graph expects a file to write, {arguments.runtime_graph} is a folder")
    from inferd_protocol.artefact import MODEL_FILE

    from inferd_training.optimise.graph.runtime_graph import offline
    from inferd_training.optimise.pipeline import Job, optimise
    from inferd_training.publish import publish

    job = Job(
        export=arguments.export,
        output=arguments.output,
        data_folder=arguments.data_dir,
        calibration=arguments.calibration,
        evaluation=arguments.evaluation,
        also=tuple(arguments.also),
        max_drop_points=arguments.max_accuracy_drop,
        min_agreement=arguments.min_agreement,
        search_seconds=arguments.search_seconds,
        threads=arguments.threads,
    )
    report, table = optimise(job, tell)
    print(table)
    for note in report["optimisation"]["notes"]:
        print(f"note: {note}")
    print(f"chose '{report['optimisation']['chosen']}', wrote {arguments.output}")
    if arguments.runtime_graph is not None:
        print(f"wrote {offline(arguments.output / MODEL_FILE, arguments.runtime_graph)}")
    if arguments.repository is not None:
        print(f"published {publish(arguments.output, arguments.repository, arguments.model)}")


OPTIMIZE = command("Make an export faster, and prove it equal.", _arguments, _run)
