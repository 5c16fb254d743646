"""`inferd load`, `inferd unload`, `inferd label`: what a server serves, changed while it serves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from inferd_protocol.command import Command, CommandError

from inferd_client.commands import options

_LOAD_SECONDS = 300.0
"""Loading a large model, and running it once on a cold GPU, takes minutes."""
_USAGE = 2


def _add_load(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument(
        "--config", type=Path, metavar="FILE.json", help="a configuration to load it with, in place of its config.pbtxt"
    )
    options.add_connection(parser, timeout=_LOAD_SECONDS)


def _load(arguments: argparse.Namespace) -> int:
    config = None if arguments.config is None else _config(arguments.config)
    with options.connect(arguments) as client:
        client.load_model(arguments.name, config=config)
    print(f"{arguments.name} is loaded")
    return 0


def _config(path: Path) -> str:
    """The file's text, which is a JSON object."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CommandError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise CommandError(f"{path} is expected to hold one JSON object, the fields of a config.pbtxt")
    return text


def _add_unload(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--unload-dependents", action="store_true", help="unload the models that it is made of, too")
    options.add_connection(parser, timeout=_LOAD_SECONDS)


def _unload(arguments: argparse.Namespace) -> int:
    with options.connect(arguments) as client:
        client.unload_model(arguments.name, unload_dependents=arguments.unload_dependents)
    print(f"{arguments.name} is unloaded")
    return 0


def _add_label(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("label", metavar="LABEL", help="a name to call a version by, such as stable")
    parser.add_argument(
        "version", nargs="?", type=options.positive, metavar="VERSION", help="the version it stands for"
    )
    parser.add_argument("--remove", action="store_true", help="remove the label instead")
    options.add_connection(parser, timeout=30.0)


def _label(arguments: argparse.Namespace) -> int:
    if arguments.remove == (arguments.version is not None):
        raise CommandError("give either the version that the label stands for or --remove", _USAGE)
    with options.connect(arguments) as client:
        client.set_label(arguments.name, arguments.label, 0 if arguments.remove else arguments.version)
    outcome = "is removed" if arguments.remove else f"is version {arguments.version}"
    print(f"label {arguments.label} of {arguments.name} {outcome}")
    return 0


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the model's name in the repository")


LOAD = Command(
    summary="Have a server load a model, or load it anew, by request.",
    add_arguments=_add_load,
    run=_load,
)
UNLOAD = Command(summary="Have a server unload a model by request.", add_arguments=_add_unload, run=_unload)
LABEL = Command(
    summary="Give a version of a model a label that can be called in its place, or move or remove the label.",
    add_arguments=_add_label,
    run=_label,
)
