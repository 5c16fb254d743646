"""`inferd prune`: a run's model without its least important channels."""

from __future__ import annotations

import argparse

from inferd_training.commands import smaller_flags
from inferd_training.commands.shared import command, load_tensorflow, tell


def _arguments(parser: argparse.ArgumentParser) -> None:
    smaller_flags.add(parser, epochs="the family's", rate="the family's")
    parser.add_argument(
        "--sparsity",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="the share of each layer's channels that goes, between 0 and 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=3,
        metavar="N",
        help="how often channels go; an epoch of training follows each step, and the rest of them the last "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--importance",
        choices=("l1", "taylor"),
        default="taylor",
        help="what a channel is judged by: the sum of its weights, or what it does to the loss (default: %(default)s)",
    )
    smaller_flags.add_multiple(parser)
    smaller_flags.add_teacher(parser, alpha=0.0)


def _run(arguments: argparse.Namespace) -> None:
    load_tensorflow()
    from inferd_training.smaller.distill import Distillation
    from inferd_training.smaller.methods import prune_run
    from inferd_training.smaller.prune import Pruning

    pruning = Pruning(arguments.sparsity, arguments.steps, arguments.importance, arguments.multiple)
    distillation = Distillation(arguments.temperature, arguments.alpha)
    report = prune_run(smaller_flags.request(arguments), pruning, distillation, tell=tell)
    for name, widths in report["layers"].items():
        print(f"{name}: {widths['before']} channels, {widths['after']} left")
    for name, reason in report["left"].items():
        print(f"{name}: as it was, {reason}")
    smaller_flags.show(report, arguments)


PRUNE = command("Make a trained model smaller by taking channels away.", _arguments, _run)
