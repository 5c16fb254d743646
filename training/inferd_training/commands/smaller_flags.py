"""The flags and the output that `inferd prune`, `inferd distill` and `inferd finetune` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferd_training.commands.shared import add_data

if TYPE_CHECKING:
    from inferd_training.smaller.methods import Request


def add(parser: argparse.ArgumentParser, *, epochs: str, rate: str) -> None:
    """`epochs` and `rate` say in words which ones are taken where none are given."""
    parser.add_argument("run", type=Path, metavar="DIR", help="the run folder to start from, which stays as it is")
    add_data(parser, dataset=False)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the run folder to write")
    parser.add_argument(
        "--max-accuracy-drop",
        type=float,
        default=0.1,
        metavar="POINTS",
        help="accuracy on the test examples that may be lost, in points of a hundred; a loss larger by 0.3 must be "
        "ruled out at 95 %% (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="write the run even where it loses more")
    parser.add_argument("--epochs", type=int, metavar="N", help=f"passes over what is fitted (default: {epochs})")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="examples a step (default: the family's)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help=f"the first step's; it falls to 0 along a cosine (default: {rate})",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all randomness (default: %(default)s)")


def add_multiple(parser: argparse.ArgumentParser) -> None:
    """The flag that rounds the number of channels."""
    parser.add_argument(
        "--multiple",
        type=int,
        default=16,
        metavar="N",
        help="layers of more than N channels keep a whole multiple of N: convolutions are slower on half-full vectors "
        "(default: %(default)s)",
    )


def add_teacher(parser: argparse.ArgumentParser, *, alpha: float) -> None:
    """The flags that say what the answers of the run's own model are worth to the new one; `alpha` by default."""
    parser.add_argument(
        "--alpha",
        type=float,
        default=alpha,
        metavar="SHARE",
        help="the weight of the answers of the run's model while the new one is trained, the rest is that of the true "
        "classes (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=4.0,
        metavar="T",
        help="softens those answers: 1 leaves them as they are (default: %(default)s)",
    )


def request(arguments: argparse.Namespace) -> Request:
    """What the flags ask for. Loads TensorFlow."""
    from inferd_training.smaller.methods import Request
    from inferd_training.smaller.successor import Target

    return Request(
        run=arguments.run,
        target=Target(arguments.output, arguments.max_accuracy_drop, arguments.keep),
        data_folder=arguments.data_dir,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        optimizer=arguments.optimizer,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )


def show(report: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Prints what came of it."""
    from inferd_training.smaller.successor import table

    print(table(report))
    print(f"wrote {arguments.output}")
