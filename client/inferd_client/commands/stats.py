"""`inferd stats`: what each version has done and where its requests' time goes, once or again and again."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from inferd_protocol.command import Command

from inferd_client.commands import columns, options

if TYPE_CHECKING:
    from inferd_client.client import Client
    from inferd_client.commands.rates import Counters, Usage

_HEADER = (
    "MODEL",
    "VERSION",
    "REQUESTS",
    "FAILURES",
    "ROWS",
    "BATCH",
    "QUEUE us",
    "INPUT us",
    "INFER us",
    "OUTPUT us",
    "ROWS/S",
)
_HOME_AND_CLEAR = "\x1b[H\x1b[2J"


def table(used: Sequence[Usage]) -> list[str]:
    """The versions as lines of text: BATCH is the mean rows an execution, the times are means a request."""
    cells = [
        (
            version.model,
            version.version,
            str(version.requests),
            str(version.failures),
            str(version.rows),
            columns.number(version.mean_batch_size),
            columns.number(version.queue_us),
            columns.number(version.compute_input_us),
            columns.number(version.compute_infer_us),
            columns.number(version.compute_output_us),
            columns.number(version.rows_per_second),
        )
        for version in used
    ]
    return columns.lines(_HEADER, cells, numbers=_HEADER[1:])


def as_json(used: Sequence[Usage], seconds: float | None) -> str:
    """One line of JSON. `seconds` is what the counts are of, null for all since the version was loaded."""
    return json.dumps({"seconds": seconds, "versions": [asdict(version) for version in used]})


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", metavar="NAME", help="one model (default: all)")
    parser.add_argument(
        "--watch",
        type=options.period,
        nargs="?",
        const=2.0,
        metavar="SECONDS",
        help="show what was counted in each so many seconds (default: %(const)g), until Ctrl-C",
    )
    parser.add_argument(
        "--interval",
        type=options.duration,
        default=1.0,
        metavar="SECONDS",
        help="without --watch: how long to count rows for rows/s; 0 leaves it out (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with --watch one a line")
    options.add_connection(parser, timeout=10.0)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.watch is None:
        with options.connect(arguments) as client:
            _once(client, arguments)
    else:
        # Before anything is imported that starts threads: they inherit it, and none of them takes the signal.
        with _interrupts_held(), options.connect(arguments) as client:
            _watch(client, arguments)
    return 0


def _once(client: Client, arguments: argparse.Namespace) -> None:
    """All since the versions were loaded, with the rows/s of this moment."""
    from inferd_client.commands.rates import between, rows_per_second, usage

    counted, since = _look(client, arguments.name), time.monotonic()
    rates: dict[tuple[str, str], float] = {}
    if arguments.interval > 0:
        time.sleep(arguments.interval)
        before, counted = counted, _look(client, arguments.name)
        rates = rows_per_second(between(before, counted), time.monotonic() - since)
    used = usage(counted, rates)
    print(as_json(used, None) if arguments.json else "\n".join(table(used)))


def _watch(client: Client, arguments: argparse.Namespace) -> None:
    """All since the versions were loaded first, so that there is something to see, then period by period."""
    from inferd_client.commands.rates import between, rows_per_second, usage

    before, since = _look(client, arguments.name), time.monotonic()
    _show(usage(before, {}), None, arguments.json)
    while not _interrupted(arguments.watch):
        after, now = _look(client, arguments.name), time.monotonic()
        counted, seconds = between(before, after), now - since
        _show(usage(counted, rows_per_second(counted, seconds)), seconds, arguments.json)
        before, since = after, now


def _show(used: Sequence[Usage], seconds: float | None, as_objects: bool) -> None:
    # Flushed: what is watched through a pipe is watched as it happens.
    if as_objects:
        print(as_json(used, seconds), flush=True)
        return
    caption = "since loaded" if seconds is None else f"in {seconds:.1f} s"
    text = "\n".join([f"{time.strftime('%H:%M:%S')} {caption}", *table(used)])
    print(f"{_HOME_AND_CLEAR}{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)


def _look(client: Client, name: str) -> Counters:
    from inferd_client.commands.rates import look

    return look(client.statistics(name))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keeps Ctrl-C until `_interrupted` asks for it: in the middle of grpc's own code it could do harm."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupted(seconds: float) -> bool:
    """Waits so many seconds for Ctrl-C, and says whether it came."""
    return signal.sigtimedwait([signal.SIGINT], seconds) is not None


STATS = Command(
    summary="Show what each version of a server's models has done, and where the time of its requests goes.",
    add_arguments=_add_arguments,
    run=_run,
)
