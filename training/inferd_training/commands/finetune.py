"""`inferd finetune`: a run's model trained on, so that INT8 harms it less."""

from __future__ import annotations

import argparse

from inferd_training.commands import smaller_flags
from inferd_training.commands.shared import command, load_tensorflow, tell


def _arguments(parser: argparse.ArgumentParser) -> None:
    smaller_flags.add(parser, epochs="2", rate="a tenth of the family's")


def _run(arguments: argparse.Namespace) -> None:
    load_tensorflow()
    from inferd_training.smaller.methods import finetune_run

    report = finetune_run(smaller_flags.request(arguments), tell=tell)
    print(f"fine-tuned for INT8: {', '.join(report['quantised'])}")
    for name, reason in report["left"].items():
        print(f"{name}: {reason}")
    rounded = report["rounded"]
    print(
        f"rounded to 8 bits: test accuracy {rounded['before']['test_accuracy']:.4f} before, "
        f"{rounded['after']['test_accuracy']:.4f} after"
    )
    smaller_flags.show(report, arguments)


FINETUNE = command("Train a model on for INT8: quantisation-aware fine-tuning.", _arguments, _run)
