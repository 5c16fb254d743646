"""`inferd distill`: a smaller model that learns from a run's model."""

from __future__ import annotations

import argparse

from inferd_protocol.command import CommandError

from inferd_training.commands import smaller_flags
from inferd_training.commands.shared import command, load_tensorflow, tell


def _arguments(parser: argparse.ArgumentParser) -> None:
    smaller_flags.add(parser, epochs="three times the family's", rate="twice the family's")
    parser.add_argument(
        "--width",
        type=float,
        metavar="SHARE",
        help="the student is like its teacher with that share of each layer's channels (default: 0.5)",
    )
    parser.add_argument("--student", metavar="FAMILY", help="or the student is of this model family")
    smaller_flags.add_multiple(parser)
    smaller_flags.add_teacher(parser, alpha=0.5)
    parser.add_argument(
        "--no-baseline",
        action="store_true",
        help="do not train the same student without its teacher as well: half the time, and nothing to compare with",
    )


def _run(arguments: argparse.Namespace) -> None:
    if arguments.student is not None and arguments.width is not None:
        raise CommandError("--student and --width were both given: a student is of a family, or like its teacher")
    load_tensorflow()
    from inferd_training.gate import Comparison
    from inferd_training.smaller.distill import Distillation
    from inferd_training.smaller.methods import Student, distil_run

    report = distil_run(
        smaller_flags.request(arguments),
        Student(arguments.student, 0.5 if arguments.width is None else arguments.width, arguments.multiple),
        Distillation(arguments.temperature, arguments.alpha),
        baseline=not arguments.no_baseline,
        tell=tell,
    )
    if "baseline" in report:
        without = report["baseline"]
        found = Comparison(**without["comparison"])
        print(
            f"the same student without its teacher: test accuracy {without['test_accuracy']:.4f}; the teacher is worth "
            f"{-found.drop:+.2f} points, 95 % interval {-found.high:+.2f} to {-found.low:+.2f}"
        )
    smaller_flags.show(report, arguments)


DISTILL = command("Train a smaller model that learns from a trained one.", _arguments, _run)
