"""The `inferd` command: finds the sub-commands that the installed packages register, and runs one.

A package registers a `Command` under the entry-point group `inferd.commands`. Its module must be cheap to import
(argparse and this module): `inferd --help` imports them all, `inferd COMMAND` only its own. What the work needs is
imported inside `run`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version

GROUP = "inferd.commands"


class CommandError(Exception):
    """A mistake of the user's: one sentence, printed without a traceback; `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Command:
    """A sub-command. `run` returns the exit status; it raises CommandError for a user's mistake."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    needs: str = ""
    """The extra of the distribution that `run` imports from, named where an import fails."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `inferd ARGUMENTS` and returns the exit status: 2 for a usage error, as argparse does."""
    parser = argparse.ArgumentParser(prog="inferd", description="Take a Keras model to production.")
    parser.add_argument("--version", action="version", version=f"inferd {version('inferd')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    arguments = sys.argv[1:] if arguments is None else arguments
    registered = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    # A command that is named needs none of the others; help and typing errors show them all.
    called = [entry for entry in registered if entry.name in arguments[:1]]
    for entry in called or registered:
        command: Command = entry.load()
        sub = commands.add_parser(entry.name, help=command.summary, description=command.summary)
        command.add_arguments(sub)
        sub.set_defaults(_command=command, _command_name=entry.name)
    parsed = parser.parse_args(arguments)
    # Names of their own: a command may well have an option called --name.
    command, name = parsed._command, parsed._command_name
    try:
        return command.run(parsed)
    except CommandError as error:
        print(f"inferd {name}: {error}", file=sys.stderr)
        return error.status
    except ModuleNotFoundError as error:
        # One of our own modules missing is a defect, not a missing extra.
        if not command.needs or (error.name or "").startswith("inferd"):
            raise
        print(
            f"inferd {name}: needs the package '{error.name}', which is not installed: "
            f"pip install 'inferd[{command.needs}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"inferd {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has gone (`inferd ... | head`): nobody is left to tell.
        sys.stderr.close()
        return 1
