"""`inferd health`: asks a server whether it should be sent work; what a container's health check runs."""

from __future__ import annotations

import argparse

from inferd_protocol.command import Command

from inferd_client.commands import options

_NOT_READY = 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--live", action="store_true", help="ask whether it is there, not whether it is ready")
    options.add_connection(parser, timeout=5.0)


def _run(arguments: argparse.Namespace) -> int:
    with options.connect(arguments) as client:
        good = client.server_live() if arguments.live else client.server_ready()
    word = "live" if arguments.live else "ready"
    print(word if good else f"not {word}")
    return 0 if good else _NOT_READY


HEALTH = Command(summary="Ask a server whether it is ready; status 0 if it is.", add_arguments=_add_arguments, run=_run)
