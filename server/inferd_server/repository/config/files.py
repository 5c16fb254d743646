"""Files that a config.pbtxt names: all of them in the model's folder, however the configuration came here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from inferd_protocol import model_config_pb2 as pb

from inferd_server.errors import LoadError


def plain_name(source: str, field: str, name: str) -> str:
    """The name of a file in a folder of the model's, or nothing.

    Raises LoadError for a path: a configuration that comes over the network must not reach other folders.
    """
    if name and (name in (".", "..") or "/" in name or "\\" in name or "\0" in name):
        raise LoadError(f"{source} says {field}: {name!r}, expected the name of a file without a folder")
    return name


def labels(source: str, outputs: Iterable[pb.ModelOutput], folder: Path) -> Mapping[str, tuple[str, ...]]:
    """The labels of each output that has a label_filename: one a line, UTF-8.

    Raises LoadError where a file cannot be read.
    """
    found = {}
    for output in outputs:
        name = plain_name(source, "label_filename", output.label_filename)
        if not name:
            continue
        try:
            text = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            # The reason travels to callers, whom the server's folders do not concern.
            why = error.strerror if isinstance(error, OSError) else error
            raise LoadError(
                f"{source} says label_filename: '{name}' of output '{output.name}', which cannot be read: {why}"
            ) from error
        found[output.name] = tuple(text.removesuffix("\n").split("\n"))
    return found
