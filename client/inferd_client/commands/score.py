"""`inferd score`: every row of a file through a model, the results into a table."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from inferd_protocol.command import Command, CommandError

from inferd_client.commands import options

if TYPE_CHECKING:
    from inferd_protocol.tensors import Tensor

    from inferd_client.client import Client
    from inferd_client.files.sources import Keys, Source
    from inferd_client.metadata import ModelMetadata, TensorMetadata

_NOTICE_SECONDS = 0.2
"""How long an interrupt may go unnoticed."""

_DESCRIPTION_OF_INPUT = "an IDX file (gzip or not), an NPY file whose first axis is the rows, or a folder of pictures"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help=_DESCRIPTION_OF_INPUT)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="where the results go: .csv (a column an element), .parquet (a list column an output), .npy (one output)",
    )
    options.add_model(parser)
    parser.add_argument(
        "--outputs", nargs="+", metavar="NAME", help="the model's outputs to write, in this order (default: all)"
    )
    parser.add_argument(
        "--batch-size", type=options.positive, default=64, metavar="ROWS", help="rows a request (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency", type=options.positive, default=4, metavar="N", help="requests in flight (default: %(default)s)"
    )
    options.add_pixels(parser)
    options.add_connection(parser, timeout=120.0)


def _run(arguments: argparse.Namespace) -> int:
    from inferd_client.files import tables
    from inferd_client.retry import Retry

    tables.check_format(arguments.output)
    # A job of hours waits for a full queue or a restarted server as long as its requests' time allows.
    patient = Retry(attempts=10_000, overloaded=True, not_ready=True)
    started = time.monotonic()
    # An interrupt in the middle of grpc's own code can leave it waiting for ever. So the work has a thread of its own,
    # which no signal reaches; the main thread waits, and on an interrupt closes the client under it: the work unwinds.
    with _terminable(), options.connect(arguments, patient) as client, ThreadPoolExecutor(1) as worker:
        job = worker.submit(_job, arguments, client)
        try:
            # In slices: a signal that arrives just before a wait begins does not end it.
            while not wait([job], _NOTICE_SECONDS).done:
                pass
        except KeyboardInterrupt:
            client.close()
            raise
        rows = job.result()
    seconds = time.monotonic() - started
    print(f"{rows} rows in {seconds:.1f} s, {rows / seconds:.0f} rows/s: {arguments.output}")
    return 0


def _job(arguments: argparse.Namespace, client: Client) -> int:
    """Scores the data into the table and returns the number of rows."""
    from inferd_client.files import atomic, fitting, sources, tables

    model = client.model_metadata(arguments.model, arguments.version)
    if not model.batched:
        raise CommandError(f"model '{model.name}' takes no batches: export it with a dynamic first axis")
    tensor = fitting.choose(model.name, "input", model.inputs, arguments.input)
    with sources.open_source(arguments.data, tensor) as source, atomic.atomic_file(arguments.output) as file:
        batches = source.batches(arguments.batch_size)
        first = next(batches)
        sample = fitting.adapt(first[1][:1], tensor, arguments.scale, arguments.invert)
        classify = _single_classifier(model, arguments.outputs)
        labels = {} if classify is None else _labels(client, model, arguments.version, classify, tensor, sample)
        layout = tables.Layout(source.rows, source.key, None if classify is None else classify.name, labels)
        table = tables.new_table(arguments.output, file, layout)
        results = _score(client, arguments, tensor, itertools.chain([first], batches))
        for keys, outputs in _progress(source, results):
            table.write(keys, outputs)
        table.finish()
        return source.rows


def _score(
    client: Client, arguments: argparse.Namespace, tensor: TensorMetadata, batches: Iterator[tuple[Keys, Tensor]]
) -> Iterator[tuple[Keys, Mapping[str, Tensor]]]:
    """The batches' keys and results, in order."""
    from inferd_client.errors import InferdError
    from inferd_client.files import fitting

    in_flight: deque[Keys] = deque()

    def inputs() -> Iterator[dict[str, Tensor]]:
        for keys, rows in batches:
            in_flight.append(keys)
            yield {tensor.name: fitting.adapt(rows, tensor, arguments.scale, arguments.invert)}

    results = client.infer_many(
        arguments.model,
        inputs(),
        concurrency=arguments.concurrency,
        outputs=arguments.outputs,
        version=arguments.version,
    )
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for result in results:
            keys = in_flight.popleft()
            for name, array in result.items():
                expected = (len(keys), *shapes.setdefault(name, array.shape[1:]))
                if array.shape != expected:
                    raise CommandError(
                        f"output '{name}' has shape {list(array.shape)}, expected {list(expected)}, from {keys[0]} on"
                    )
            yield keys, result
    except InferdError as error:
        where = f", from {in_flight[0][0]} on" if in_flight else ""
        raise CommandError(f"{error}{where}") from error


def _single_classifier(model: ModelMetadata, names: list[str] | None) -> TensorMetadata | None:
    """The one output, if it is one and has a row of floats a row: its largest element is what the model predicts."""
    outputs = [output for output in model.outputs if names is None or output.name in names]
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].datatype.numpy.kind != "f":
        return None
    return None if outputs[0].shape[1] == 1 else outputs[0]


def _labels(
    client: Client, model: ModelMetadata, version: str, output: TensorMetadata, tensor: TensorMetadata, sample: Tensor
) -> dict[int, str]:
    """The labels by index, from the classification of one row into all classes; none where the server has none."""
    from inferd_client.errors import InvalidInput, Unimplemented
    from inferd_client.results import parse_classes

    classes = output.shape[1]
    if classes < 0:
        return {}
    try:
        result = client.infer(
            model.name,
            {tensor.name: sample},
            outputs=[output.name],
            version=version,
            classification={output.name: classes},
        )
    except (InvalidInput, Unimplemented):
        # The server does not have the extension. If the row itself is at fault, scoring says so next.
        return {}
    answer = result[output.name]
    if answer.dtype.kind != "O":
        return {}
    return {best.index: best.label for row in parse_classes(answer) for best in row if best.label}


def _progress(
    source: Source, results: Iterator[tuple[Keys, Mapping[str, Tensor]]]
) -> Iterator[tuple[Keys, Mapping[str, Tensor]]]:
    from tqdm import tqdm

    # disable=None: shown on a terminal only.
    with tqdm(total=source.rows, unit=" rows", unit_scale=True, disable=None) as bar:
        for keys, outputs in results:
            yield keys, outputs
            bar.update(len(keys))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM end the command as Ctrl-C does, so that it, too, leaves no unfinished file behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


SCORE = Command(
    summary="Send every row of a file, or every picture of a folder, to a model and write a table of the results.",
    add_arguments=_add_arguments,
    run=_run,
    needs="score",
)
