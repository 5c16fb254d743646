"""From data to an optimised model that is served: train, export, make smaller, optimise, publish, compare with Keras.

    python examples/optimise.py cnn            images
    python examples/optimise.py transformer    text
    python examples/optimise.py lstm

Every step but the last is a command that can be typed as well; it is printed as it runs. What is there from an earlier
call is not made again. Ends with the table of all candidates, and with the answers that the optimised version gives
over gRPC to every test row beside Keras's own. Exits 0 only if accuracy fell by no more than was allowed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from demo import heading, inferd, serve
from inferd_client import Client
from inferd_training import models, runs
from inferd_training.data import datasets
from tqdm import tqdm

DATASETS = {"cnn": "fashion-mnist", "transformer": "manpages", "lstm": "manpages"}
SUCCESSOR = ("prune", "--sparsity", "0.25", "--epochs", "8", "--alpha", "1", "--temperature", "2", "--keep")
"""How a smaller model is trained to take the original's place: by the original's answers, so that it gives the same
ones, and not only as good ones. It is one candidate among the others, and judged as they are."""
ROWS_PER_REQUEST = 64
REQUESTS_IN_FLIGHT = 8


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], epilog="What is there from an earlier call is not made again."
    )
    parser.add_argument("family", choices=list(DATASETS))
    parser.add_argument("--output", type=Path, default=Path("optimise-output"), help="default: %(default)s")
    parser.add_argument("--max-accuracy-drop", type=float, default=0.1, metavar="POINTS", help="default: %(default)s")
    parser.add_argument(
        "--min-agreement",
        type=float,
        default=0.99,
        metavar="SHARE",
        help="of rows that must keep the original's class, right or wrong (default: %(default)s)",
    )
    arguments = parser.parse_args()
    folder: Path = arguments.output / arguments.family
    run, export, optimised = folder / "run", folder / "export", folder / "optimised"
    smaller, successor = folder / "smaller-run", folder / "smaller"
    repository = folder / "repository"
    steps: list[tuple[Path, *tuple[str | Path, ...]]] = [
        (run, "train", "--dataset", DATASETS[arguments.family], "--family", arguments.family, "--output", run),
        (export, "export", run, "--output", export),
        (smaller, SUCCESSOR[0], run, *SUCCESSOR[1:], "--output", smaller),
        (successor, "export", smaller, "--output", successor),
    ]
    flags = ["--max-accuracy-drop", str(arguments.max_accuracy_drop)]
    flags += ["--min-agreement", str(arguments.min_agreement), "--also", str(successor)]
    for made, *command in steps:
        if not made.exists():
            heading(str(command[0]))
            if inferd(*map(str, command)) != 0:
                return 1
    heading("optimize")
    if inferd("optimize", str(export), "--output", str(optimised), *flags) != 0:
        return 1
    for version in (export, optimised):
        if inferd("publish", str(version), "--repository", str(repository), "--name", arguments.family) != 0:
            return 1
    heading("Serving, and scoring the test rows over gRPC")
    return 0 if compare(run, repository, arguments.family) <= arguments.max_accuracy_drop else 1


def compare(run_folder: Path, repository: Path, name: str) -> float:
    """By how many points of accuracy the newest version, as it is served, lies below Keras."""
    run = runs.load(run_folder)
    data = datasets.load(run.dataset, run.data_folder)
    ((output, _),) = run.labels.items()
    model = models.load(run.model)
    (entry,) = models.signature(model).inputs
    in_keras = models.predict(model, {entry.name: data.test.inputs}, 256, run.preprocessing)[output].argmax(axis=1)
    starts = range(0, len(data.test), ROWS_PER_REQUEST)
    batches = ({entry.name: data.test.inputs[start : start + ROWS_PER_REQUEST]} for start in starts)
    with serve(repository) as address, Client(address) as client:
        answers = client.infer_many(name, batches, concurrency=REQUESTS_IN_FLIGHT)
        served = np.concatenate([answer[output] for answer in tqdm(answers, total=len(starts), disable=None)])
    over_grpc = served.argmax(axis=1)
    accuracy, expected = (float((classes == data.test.truth).mean()) for classes in (over_grpc, in_keras))
    print(
        f"\n{len(in_keras)} test rows: accuracy over gRPC {accuracy:.4f}, in Keras {expected:.4f}; the same class for "
        f"{(over_grpc == in_keras).mean():.2%}"
    )
    return 100 * (expected - accuracy)


if __name__ == "__main__":
    sys.exit(main())
