"""The commands from the data to the published artefact: `inferd data|train|evaluate|export|verify|publish`.

Results go to stdout, progress to stderr. The work is imported when a command runs: every `inferd` loads this module.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferd_protocol.command import CommandError

from inferd_training.commands.shared import add_data, command, load_tensorflow, tell

if TYPE_CHECKING:
    from inferd_training.export.parity import Tolerance


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, dataset=True)


def _data(arguments: argparse.Namespace) -> None:
    from inferd_training.data.datasets import load

    data = load(arguments.dataset, arguments.data_dir, tell=tell)
    print(f"{data.name} from {data.source}")
    examples = data.kind.examples
    parts = {"training": data.train, "validation": data.validation, "test": data.test}
    sizes = [f"{len(part)} {name} {examples}" for name, part in parts.items() if part is not None]
    print(f"{', '.join(sizes)}, {len(data.labels)} classes")
    for name, digest in data.sha256.items():
        print(f"{digest}  {name}")
    for package, version in data.packages.items():
        print(f"made from {package} {version}")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, dataset=True)
    parser.add_argument("--family", default="cnn", help="the model family (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="passes over the training examples (default: the family's)"
    )
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="examples a step (default: the family's)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="the first step's; it falls to 0 along a cosine (default: the family's for the optimizer)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all randomness (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the run folder to write")


def _train(arguments: argparse.Namespace) -> None:
    load_tensorflow()
    from inferd_training import stages

    run = stages.train(
        arguments.output,
        dataset=arguments.dataset,
        data_folder=arguments.data_dir,
        family=arguments.family,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        optimizer=arguments.optimizer,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        tell=tell,
    )
    print(f"validation accuracy {run.training['validation_accuracy']:.4f}")
    print(f"wrote {run.folder}")


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="DIR", help="the run folder that `inferd train` wrote")
    add_data(parser, dataset=False)


def _evaluate(arguments: argparse.Namespace) -> None:
    load_tensorflow()
    from inferd_training import stages
    from inferd_training.evaluate import table

    print(table(stages.evaluate_run(arguments.run, data_folder=arguments.data_dir, tell=tell)))


def _add_parity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=Path, metavar="FILE", help="inputs to compare on: .npz, one array an input")
    parser.add_argument(
        "--atol",
        type=float,
        metavar="X",
        help="absolute tolerance between ONNX Runtime and Keras, for every output (default: by the output's dtype)",
    )
    parser.add_argument(
        "--rtol", type=float, metavar="X", help="relative tolerance, added to --atol (default: likewise)"
    )


def _tolerance(arguments: argparse.Namespace) -> Tolerance | None:
    if arguments.atol is None and arguments.rtol is None:
        return None
    from inferd_training.export.parity import Tolerance

    chosen = Tolerance(arguments.atol or 0.0, arguments.rtol or 0.0)
    # Also false for NaN.
    if not (0 <= chosen.absolute < float("inf") and 0 <= chosen.relative < float("inf")):
        raise CommandError(
            f"--atol {arguments.atol} and --rtol {arguments.rtol} came, where finite numbers from 0 were expected"
        )
    return chosen


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run folder of `inferd train`, or any .keras file")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write")
    add_data(parser, dataset=False)
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="for a .keras file: one label a line, or JSON {output: [label, ...]}",
    )
    parser.add_argument(
        "--preprocessing",
        type=Path,
        metavar="FILE",
        help='for a .keras file: JSON {input: {"dtype": "uint8", "scale": 0.00392, "offset": 0}}, done in the graph',
    )
    _add_parity(parser)


def _export(arguments: argparse.Namespace) -> None:
    tolerance = _tolerance(arguments)
    for option, folder in (("data_dir", True), ("labels", False), ("preprocessing", False), ("samples", False)):
        if getattr(arguments, option) is not None and arguments.model.is_dir() is not folder:
            kind = "a run folder" if folder else "a .keras file"
            raise CommandError(f"--{option.replace('_', '-')} is for {kind}, which {arguments.model} is not")
    load_tensorflow()
    from inferd_training import stages

    if arguments.model.is_dir():
        report = stages.export_run(
            arguments.model, arguments.output, data_folder=arguments.data_dir, tolerance=tolerance, tell=tell
        )
    else:
        report = stages.export_file(
            arguments.model,
            arguments.output,
            labels=arguments.labels,
            preprocessing=arguments.preprocessing,
            samples=arguments.samples,
            tolerance=tolerance,
            tell=tell,
        )
    _print_findings(report)
    metrics = report["metrics"]
    if metrics:
        print(f"accuracy {metrics['accuracy']:.4f} in Keras, {metrics['onnx_accuracy']:.4f} in ONNX Runtime")
    print(f"verified, wrote {arguments.output}")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artefact", type=Path, metavar="PATH", help="the folder of an export, or an ONNX file")
    parser.add_argument(
        "--keras", type=Path, metavar="MODEL", help="compare with this .keras file, or this run folder's model, too"
    )
    add_data(parser, dataset=False)
    _add_parity(parser)


def _verify(arguments: argparse.Namespace) -> None:
    tolerance = _tolerance(arguments)
    load_tensorflow()
    from inferd_training import stages

    found = stages.verify(
        arguments.artefact,
        keras_model=arguments.keras,
        data_folder=arguments.data_dir,
        samples=arguments.samples,
        tolerance=tolerance,
        tell=tell,
    )
    _print_findings(found)
    report = "as its report says" if found["reported"] else "no report beside it"
    golden = f", golden answers of {found['golden']['rows']} rows as recorded" if "golden" in found else ""
    compared = "compared with Keras" if "parity" in found else "not compared with Keras: give --keras for that"
    print(f"verified: {report}{golden}, {compared}")


def _print_findings(found: dict[str, Any]) -> None:
    model = found["model"]
    print(
        f"{model['bytes']} bytes, opset {model['opset']}, IR version {model['ir_version']}, SHA-256 {model['sha256']}"
    )
    for kind in ("inputs", "outputs"):
        print(f"{kind}: {', '.join(f'{name} {datatype}' for name, datatype in model[kind].items())}")
    for loop in model["loops"]:
        layer = f" from the layer '{loop['layer']}'" if loop["layer"] else ""
        print(f"slow: {loop['operator']} node '{loop['node']}'{layer}: {loop['fix']}")
    parity = found.get("parity")
    if parity is None:
        return
    print(f"parity with Keras on {parity['samples']}:")
    for figure in parity["figures"]:
        top1 = "" if figure["top1_agreement"] is None else f", top-1 agreement {figure['top1_agreement']:.2%}"
        print(
            f"  {figure['output']}, batch {figure['batch']}, {figure['rows']} rows: "
            f"largest error {figure['max_absolute_error']:.2g}{top1}"
        )


def _publish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", type=Path, metavar="DIR", help="the folder that `inferd export` wrote")
    parser.add_argument("--repository", type=Path, required=True, metavar="DIR", help="the model repository")
    # Not under `name`, where the parsed arguments keep the command's own.
    parser.add_argument("--name", dest="model", required=True, metavar="NAME", help="the model's name there")
    parser.add_argument(
        "--version", type=int, metavar="N", help="the version to publish (default: one after the newest)"
    )


def _publish(arguments: argparse.Namespace) -> None:
    from inferd_training.publish import publish

    folder = publish(arguments.export, arguments.repository, arguments.model, arguments.version)
    print(f"published {folder}")


DATA = command("Fetch and verify a data set.", _data_arguments, _data)
TRAIN = command("Train a model.", _train_arguments, _train)
EVALUATE = command("Evaluate a trained model on the test examples.", _evaluate_arguments, _evaluate)
EXPORT = command("Export a Keras model to a verified ONNX file.", _export_arguments, _export)
VERIFY = command("Verify an export, or any ONNX file, again.", _verify_arguments, _verify)
PUBLISH = command("Publish a verified export in a model repository.", _publish_arguments, _publish)
