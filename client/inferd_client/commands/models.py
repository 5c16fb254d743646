"""`inferd models`: what a server has, in which state, under which labels, on what, and how busy."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from inferd_protocol.command import Command, CommandError

from inferd_client.commands import columns, options

if TYPE_CHECKING:
    from inferd_client.client import Client
    from inferd_client.commands.rates import Counters
    from inferd_client.repository import ModelConfig, ModelIndex

_READY = "READY"
_HEADER = ("MODEL", "VERSION", "STATE", "LABELS", "PROVIDER", "ROWS/S", "REASON")


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A version of a model. None is what the server does not tell."""

    model: str
    version: str
    state: str | None
    labels: tuple[str, ...] | None
    provider: str | None
    rows_per_second: float | None
    reason: str


def rows(
    index: Iterable[ModelIndex] | None,
    configs: Mapping[tuple[str, str], ModelConfig],
    rates: Mapping[tuple[str, str], float | None],
) -> list[ModelRow]:
    """A row a version, by name and number: of the index, or, where there is none, of the versions that have rates."""
    from inferd_client.commands.rates import by_version

    states: dict[tuple[str, str], tuple[str | None, str]] = (
        dict.fromkeys(rates, (None, ""))
        if index is None
        else {(version.name, version.version): (version.state or None, version.reason) for version in index}
    )
    found = []
    for key in sorted(states, key=by_version):
        (name, version), (state, reason), config = key, states[key], configs.get(key)
        labels = None
        if config is not None:
            labels = tuple(sorted(label for label, number in config.labels.items() if str(number) == version))
        provider = None if config is None else config.provider or None
        found.append(ModelRow(name, version, state, labels, provider, rates.get(key), reason))
    return found


def table(found: Sequence[ModelRow]) -> list[str]:
    """The rows as lines of text."""
    if not found:
        return ["no models"]
    cells = [
        (
            row.model,
            row.version,
            row.state or "",
            ", ".join(row.labels or ()),
            row.provider or "",
            columns.number(row.rows_per_second),
            row.reason,
        )
        for row in found
    ]
    return columns.lines(_HEADER, cells, numbers=("VERSION", "ROWS/S"))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        type=options.duration,
        default=1.0,
        metavar="SECONDS",
        help="how long to count rows for the column of rows/s; 0 leaves it out (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array, an object a version")
    options.add_connection(parser, timeout=10.0)


def _run(arguments: argparse.Namespace) -> int:
    from inferd_client.commands.rates import between, rows_per_second

    with options.connect(arguments) as client:
        index = _index(client)
        before, since = _look(client), time.monotonic()
        if index is None and before is None:
            raise CommandError(f"the server at {arguments.server} has no list of models: neither index nor statistics")
        if index is None:
            keys = list(before or ())
        else:
            keys = [(version.name, version.version) for version in index if version.state == _READY]
        configs = _configs(client, keys)
        rates: Mapping[tuple[str, str], float | None] = dict.fromkeys(before or ())
        if before is not None and arguments.interval > 0:
            time.sleep(max(0.0, since + arguments.interval - time.monotonic()))
            counted = between(before, _look(client) or {})
            rates = {**rates, **rows_per_second(counted, time.monotonic() - since)}
    found = rows(index, configs, rates)
    if arguments.json:
        print(json.dumps([asdict(row) for row in found]))
    else:
        print("\n".join(table(found)))
    return 0


def _index(client: Client) -> tuple[ModelIndex, ...] | None:
    from inferd_client.errors import Unimplemented

    try:
        return client.repository_index()
    except Unimplemented:
        return None


def _look(client: Client) -> Counters | None:
    from inferd_client.commands.rates import look
    from inferd_client.errors import Unimplemented

    try:
        return look(client.statistics())
    except Unimplemented:
        return None


def _configs(client: Client, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], ModelConfig]:
    """The configurations that the server tells: a version may have gone since the index was made."""
    from inferd_client.errors import InvalidInput, ModelNotFound, PermissionDenied, Unavailable, Unimplemented

    configs = {}
    for name, version in keys:
        try:
            configs[name, version] = client.model_config(name, version)
        except (Unimplemented, PermissionDenied):
            break
        except (ModelNotFound, InvalidInput, Unavailable):
            continue
    return configs


MODELS = Command(
    summary="List a server's models: versions, states, labels, execution providers and rows/s.",
    add_arguments=_add_arguments,
    run=_run,
)
