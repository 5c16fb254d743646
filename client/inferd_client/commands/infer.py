"""`inferd infer`: one picture or array in, labels and their values out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferd_protocol.command import Command, CommandError

from inferd_client.commands import options

if TYPE_CHECKING:
    from inferd_protocol.tensors import Tensor

    from inferd_client.client import Client
    from inferd_client.metadata import ModelMetadata, TensorMetadata
    from inferd_client.results import Classification, InferResult


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="a picture, or an array as .npy")
    options.add_model(parser)
    parser.add_argument("--output", metavar="NAME", help="the output to show, where the model has several")
    parser.add_argument(
        "--top", type=options.positive, default=3, metavar="K", help="how many classes to show (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options.add_pixels(parser)
    options.add_connection(parser, timeout=30.0)


def _run(arguments: argparse.Namespace) -> int:
    from inferd_client.files import fitting

    with options.connect(arguments) as client:
        model = client.model_metadata(arguments.model, arguments.version)
        tensor = fitting.choose(model.name, "input", model.inputs, arguments.input)
        output = fitting.choose(model.name, "output", model.outputs, arguments.output)
        rows = fitting.adapt(_load(arguments.file, tensor), tensor, arguments.scale, arguments.invert)
        result, classes = _ask(client, model, arguments.version, {tensor.name: rows}, output, arguments.top)
    if arguments.json:
        print(json.dumps(_as_json(result, output.name, classes)))
    elif classes is None:
        print(result[output.name])
    else:
        _print_classes(classes)
    return 0


def _load(path: Path, tensor: TensorMetadata) -> Tensor:
    """The file's rows: a picture is one, and so is an array that is not a batch of them."""
    import numpy as np

    from inferd_client.files import fitting, images

    if path.suffix.lower() != ".npy":
        return images.read(path, images.image_format(tensor))[np.newaxis]
    try:
        array: Tensor = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CommandError(f"cannot read {path} as an array: {error}") from error
    return array if fitting.fits(array, tensor) else array[np.newaxis]


def _ask(
    client: Client,
    model: ModelMetadata,
    version: str,
    inputs: dict[str, Tensor],
    output: TensorMetadata,
    top: int,
) -> tuple[InferResult, list[list[Classification]] | None]:
    """The answer, and its best classes where the output has a row of numbers a row."""
    from inferd_client.errors import Unimplemented
    from inferd_client.results import parse_classes, top_classes

    if len(output.shape) != 2 or output.datatype.numpy.kind != "f":
        return client.infer(model.name, inputs, version=version, outputs=[output.name]), None
    try:
        result = client.infer(
            model.name, inputs, version=version, outputs=[output.name], classification={output.name: top}
        )
    except Unimplemented:
        result = client.infer(model.name, inputs, version=version, outputs=[output.name])
    array = result[output.name]
    # A server that does not know the extension may also answer as if it had not been asked for.
    return result, parse_classes(array) if array.dtype.kind == "O" else top_classes(array, top)


def _as_json(result: InferResult, output: str, classes: list[list[Classification]] | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": result.model_name, "version": result.model_version, "output": output}
    if classes is None:
        values = result[output]
        if values.dtype.kind == "O":
            values = values.astype("S").astype("U")
        return facts | {"values": values.tolist()}
    return facts | {
        "rows": [
            [{"index": best.index, "label": best.label or None, "value": best.value} for best in row] for row in classes
        ]
    }


def _print_classes(classes: list[list[Classification]]) -> None:
    names = [[best.label or f"class {best.index}" for best in row] for row in classes]
    width = max((len(name) for row in names for name in row), default=0)
    for number, row in enumerate(classes):
        if len(classes) > 1:
            print(f"row {number}")
        for name, best in zip(names[number], row, strict=True):
            print(f"{name:<{width}}  {best.value:.4f}")


INFER = Command(
    summary="Send one picture or array to a model and print its best classes.",
    add_arguments=_add_arguments,
    run=_run,
    needs="score",
)
