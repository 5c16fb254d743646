"""`inferd health`: asks a server whether it should be sent work; what a container's health check runs."""

from __future__ import annotations

import argparse

from inferd_protocol.command import Command

_NOT_READY = 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="(default: %(default)s)")
    parser.add_argument("--live", action="store_true", help="ask whether it is there, not whether it is ready")
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="(default: %(default)s)")


def _run(arguments: argparse.Namespace) -> int:
    from inferd_client import Client

    with Client(arguments.server) as client:
        question = client.server_live if arguments.live else client.server_ready
        good = question(timeout=arguments.timeout)
    word = "live" if arguments.live else "ready"
    print(word if good else f"not {word}")
    return 0 if good else _NOT_READY


HEALTH = Command(summary="Ask a server whether it is ready; status 0 if it is.", add_arguments=_add_arguments, run=_run)
