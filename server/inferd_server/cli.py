"""`inferd serve`. The flags are the fields of `ServerConfig`, which says what each means."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from inferd_protocol.command import Command, CommandError

from inferd_server.config import ServerConfig
from inferd_server.errors import ConfigurationError

if TYPE_CHECKING:
    from inferd_server.workers import Link

_USAGE_STATUS = 2


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for field in dataclasses.fields(ServerConfig):
        parse, text = field.metadata["parse"], field.metadata["help"]
        flag = "--" + field.name.replace("_", "-")
        if parse is bool:
            parser.add_argument(flag, action="store_true", help=text)
        elif field.metadata["many"]:
            parser.add_argument(flag, action="append", default=[], metavar="NAME", help=text)
        else:
            required = field.default is dataclasses.MISSING
            default = None if required else field.default
            if default is not None:
                text += f" (default: {default})"
            choices = [str(member) for member in parse] if hasattr(parse, "__members__") else None
            parser.add_argument(
                flag, type=str if choices else parse, choices=choices, required=required, default=default, help=text
            )


def _run(arguments: argparse.Namespace) -> int:
    try:
        config = _config(arguments)
        # Imported when asked for: `inferd --help` needs none of it.
        from inferd_server.observability import log

        log.configure(config.log_format, config.log_level)
        if config.workers > 1:
            from inferd_server import workers

            return workers.run(config, _work)
        from inferd_server import app

        return app.run(config)
    except ConfigurationError as error:
        raise CommandError(str(error), _USAGE_STATUS) from None


def _work(config: ServerConfig, link: Link) -> int:
    # Imported by the worker alone: the parent must stay free of threads.
    from inferd_server import app

    return app.run(config, link)


def _config(arguments: argparse.Namespace) -> ServerConfig:
    values = {}
    for field in dataclasses.fields(ServerConfig):
        value = getattr(arguments, field.name)
        if field.metadata["many"]:
            value = tuple(value)
        elif value is not None and not isinstance(value, bool):
            value = field.metadata["parse"](value)
        values[field.name] = value
    return ServerConfig(**values)


SERVE = Command(
    summary="Serve the models of a repository over gRPC.", add_arguments=_add_arguments, run=_run, needs="server"
)
