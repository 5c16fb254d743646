"""Archives, read in memory: nothing of theirs is unpacked to disk."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator

from inferd_training.errors import SourceUnavailable


def members(archive: bytes, wanted: Callable[[str], bool], most: int, package: str) -> Iterator[tuple[str, bytes]]:
    """The regular files of a tar archive, compressed or not, whose path is `wanted`: path and content of each.

    Files of more than `most` bytes are passed over, and links are not followed. Raises SourceUnavailable for a damaged
    archive; `package` is for its message.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                if not member.isreg() or member.size > most or not wanted(member.name):
                    continue
                stream = tar.extractfile(member)
                if stream is not None:
                    yield member.name, stream.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise SourceUnavailable(f"{package} is a damaged archive ({error})") from error
