"""Regions of POSIX shared memory on this host.

A region is never mapped: it is an open file, read with `pread` and written with `pwrite`. A client may cut its file
short, or the file system may have no page left, at any time; a load or a store through a mapping would then end the
process with SIGBUS, and no check before it could help. Here it is an error of the one call. The price is a copy by the
kernel, for inputs the one into the batch.
"""

from __future__ import annotations

import os
import resource
import stat
import weakref
from pathlib import Path

from inferd_server.errors import InvalidRequest, RuntimeFailure
from inferd_server.shared_memory.regions import Region, Regions

FOLDER = Path("/dev/shm")  # noqa: S108 - not for temporary files: what is there is opened, never made
"""Where Linux keeps what shm_open names."""
_LONGEST_KEY = 255
_MOST_REGIONS = 1024
_FILES_SHARE = 4
"""Regions may take one in so many of the files that the process may open: connections need the rest."""


class SystemRegion(Region):
    """`byte_size` bytes from `offset` of the shared memory object `key`."""

    __slots__ = ("file", "key", "offset")

    def __init__(self, name: str, key: str, offset: int, byte_size: int, file: int) -> None:
        super().__init__(name, byte_size)
        self.key = key
        self.offset = offset
        self.file = file
        """The descriptor. The region owns it."""
        weakref.finalize(self, os.close, file)

    def read_into(self, start: int, target: memoryview) -> None:
        """As `Region.read_into`: InvalidRequest where the file has become shorter than the region."""
        position = self.offset + start
        while target:
            count = os.preadv(self.file, [target], position)
            if not count:
                raise self._cut_short()
            target = target[count:]
            position += count

    def write(self, start: int, data: memoryview) -> None:
        """As `Region.write`: RuntimeFailure where the file system takes no more."""
        position = self.offset + start
        # A write past its end would make the file longer again, which is not what the client asked for.
        if os.fstat(self.file).st_size < position + len(data):
            raise self._cut_short()
        while data:
            try:
                count = os.pwrite(self.file, data, position)
            except OSError as error:
                raise RuntimeFailure(
                    f"shared memory region '{self.name}' cannot be written: {error.strerror}"
                ) from error
            data = data[count:]
            position += count

    def _cut_short(self) -> InvalidRequest:
        return InvalidRequest(
            f"shared memory region '{self.name}' was registered with {self.byte_size} bytes from "
            f"{self.offset} of '{self.key}', which has become shorter: register it anew"
        )


def register(regions: Regions, name: str, key: str, offset: int, byte_size: int) -> None:
    """Registers a part of the object that shm_open calls `key`, offset and size in bytes.

    Raises as `Regions.add` does, and InvalidRequest where the key names nothing that the server may use, or too little
    of it.
    """
    regions.add(name, lambda: _region(name, key, offset, byte_size))


def _region(name: str, key: str, offset: int, byte_size: int) -> SystemRegion:
    if byte_size < 1 or offset < 0:
        raise InvalidRequest(
            f"shared memory region '{name}' is expected to have 1 byte or more from offset 0 or more, "
            f"got {byte_size} from {offset}"
        )
    region = SystemRegion(name, key, offset, byte_size, _open(name, key))
    size = os.fstat(region.file).st_size
    if offset + byte_size > size:
        raise InvalidRequest(
            f"shared memory region '{name}' is expected within the {size} bytes of '{key}', "
            f"got {byte_size} bytes from offset {offset}"
        )
    return region


def most_regions() -> int:
    """How many regions leave enough of the process's open files to everything else."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_REGIONS if limit == resource.RLIM_INFINITY else min(_MOST_REGIONS, limit // _FILES_SHARE)


def _open(name: str, key: str) -> int:
    """Opens what shm_open calls `key`: a file of its folder, no link, no path. Raises InvalidRequest."""
    file_name = key.removeprefix("/")
    if (
        not file_name
        or file_name in (".", "..")
        or "/" in file_name
        or "\0" in file_name
        or len(file_name.encode()) > _LONGEST_KEY
    ):
        raise InvalidRequest(
            f"shared memory region '{name}' has key {key!r}: expected the name of a shared memory object, "
            "with no slash but a first one"
        )
    try:
        # Non-blocking, so that a pipe of that name holds nobody up.
        file = os.open(FOLDER / file_name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidRequest(
            f"shared memory region '{name}' has key '{key}', which cannot be opened: {error.strerror}"
        ) from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InvalidRequest(f"shared memory region '{name}' has key '{key}', which is no shared memory object")
    return file
