"""A model whose config or files came in the request to load it, instead of lying in the repository."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from inferd_server.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Override:
    """What a load is to take instead of the repository's. `config` is JSON; `files` are by `<version>/<name>`."""

    config: str
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.files:
            parts = PurePosixPath(name).parts
            version = parts[0] if parts else ""
            plain = version.isascii() and version.isdigit() and not version.startswith("0")
            if len(parts) < 2 or not plain or ".." in parts or "\0" in name:
                raise InvalidRequest(
                    f"parameter 'file:{name}' is expected to name <version>/<file>, the version a whole number from 1"
                )


@contextmanager
def written(name: str, override: Override) -> Iterator[Path]:
    """A folder with the files of an override, for as long as it is being loaded."""
    with tempfile.TemporaryDirectory(prefix="inferd-load-") as folder:
        model = Path(folder) / name
        for path, content in override.files.items():
            target = model / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        yield model
