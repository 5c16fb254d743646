"""Options that the commands share, and how their mistakes reach the user. Cheap to import: `inferd --help` does."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inferd_protocol.command import CommandError

if TYPE_CHECKING:
    from inferd_client.channel import Tls
    from inferd_client.client import Client
    from inferd_client.retry import Retry

TOKEN_VARIABLE = "INFERD_TOKEN"  # noqa: S105 - the variable's name


def add_connection(parser: argparse.ArgumentParser, *, timeout: float) -> None:
    """Which server, how to reach it, and how long to wait for it."""
    group = parser.add_argument_group("connection")
    group.add_argument("-u", "--server", default="127.0.0.1:8001", metavar="HOST:PORT", help="(default: %(default)s)")
    group.add_argument(
        "--timeout",
        type=float,
        default=timeout,
        metavar="SECONDS",
        help="how long a request may take, retries included (default: %(default)g)",
    )
    group.add_argument("--tls", action="store_true", help="encrypt, and trust the system's authorities")
    group.add_argument("--tls-root", metavar="PEM", help="encrypt, and trust these authorities")
    group.add_argument("--tls-certificate", metavar="PEM", help="the client's certificate, with --tls-key")
    group.add_argument("--tls-key", metavar="PEM", help="the client's key, with --tls-certificate")
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"a file that holds the bearer token (default: the value of {TOKEN_VARIABLE})",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, and which of its inputs."""
    parser.add_argument("--model", required=True, metavar="NAME", help="the model's name on the server")
    parser.add_argument(
        "--version", default="", metavar="N", help="its version, or a label of one (default: the server's choice)"
    )
    parser.add_argument("--input", metavar="NAME", help="the input to feed, where the model has several")


def add_pixels(parser: argparse.ArgumentParser) -> None:
    """What happens to the numbers before they are sent."""
    parser.add_argument(
        "--scale",
        type=factor,
        metavar="FACTOR",
        help="multiply by this first, for example 1/255; without it a model of floats gets an image's raw 0 to 255",
    )
    parser.add_argument(
        "--invert",
        action="store_true",
        help="255 minus each value, for dark-on-light pictures and a light-on-dark model",
    )


def factor(text: str) -> float:
    """A number, or a quotient of two."""
    numerator, _, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number nor a quotient such as 1/255") from None


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def duration(text: str) -> float:
    """Seconds, 0 or more."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")
    return seconds


def period(text: str) -> float:
    """Seconds, more than 0."""
    seconds = duration(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError("a period is more than 0 seconds")
    return seconds


@contextlib.contextmanager
def connect(arguments: argparse.Namespace, retry: Retry | None = None) -> Iterator[Client]:
    """A client for the options of `add_connection`.

    What the library raises inside becomes a CommandError: its messages are written to be read by users.
    """
    from inferd_client.client import Client
    from inferd_client.errors import InferdError
    from inferd_client.retry import Retry

    try:
        with Client(
            arguments.server,
            timeout=arguments.timeout,
            retry=retry or Retry(),
            tls=_tls(arguments),
            token=_token(arguments),
        ) as client:
            yield client
    except InferdError as error:
        raise CommandError(str(error)) from error


def _tls(arguments: argparse.Namespace) -> Tls | None:
    from inferd_client.channel import Tls

    files = (arguments.tls_root, arguments.tls_certificate, arguments.tls_key)
    if not arguments.tls and not any(files):
        return None
    for path in filter(None, files):
        _readable(path)
    if (arguments.tls_certificate is None) != (arguments.tls_key is None):
        raise CommandError("--tls-certificate and --tls-key are given together")
    return Tls(root=arguments.tls_root, certificate=arguments.tls_certificate, key=arguments.tls_key)


def _token(arguments: argparse.Namespace) -> str | None:
    if arguments.token_file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    return _readable(arguments.token_file).decode(errors="replace").strip()


def _readable(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
