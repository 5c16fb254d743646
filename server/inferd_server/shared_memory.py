"""Regions of POSIX shared memory that clients on this host registered, and the parts of them that tensors lie in.

A region is never mapped: it is an open file, read with `pread` and written with `pwrite`. A client may cut its file
short, or the file system may have no page left, at any time; a load or a store through a mapping would then end the
process with SIGBUS, and no check before it could help. Here it is an error of the one call. The price is a copy by the
kernel, for inputs the one into the batch.
"""

from __future__ import annotations

import os
import resource
import stat
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inferd_server.errors import (
    InvalidRequest,
    NotBuilt,
    RegionExists,
    RegionNotFound,
    RuntimeFailure,
    TooManyRegions,
)

FOLDER = Path("/dev/shm")  # noqa: S108 - not for temporary files: what is there is opened, never made
"""Where Linux keeps what shm_open names."""
_LONGEST_KEY = 255
_LONGEST_NAME = 1024
_MOST_REGIONS = 1024
_FILES_SHARE = 4
"""Regions may take one in so many of the files that the process may open: connections need the rest."""


class Region:
    """`byte_size` bytes from `offset` of the shared memory object `key`. Its file is closed with the last reference."""

    __slots__ = ("__weakref__", "byte_size", "file", "key", "name", "offset")

    def __init__(self, name: str, key: str, offset: int, byte_size: int, file: int) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self.file = file
        """The descriptor. The region owns it."""
        weakref.finalize(self, os.close, file)


@dataclass(frozen=True, slots=True)
class Range:
    """Where a request says that a tensor is: `byte_size` bytes from `offset` of the region called `region`."""

    region: str
    offset: int
    byte_size: int


class Window:
    """Bytes of a region. It keeps the region open, whether or not it is still registered."""

    __slots__ = ("_region", "_start", "nbytes", "offset")

    def __init__(self, region: Region, offset: int, nbytes: int) -> None:
        self._region = region
        self._start = region.offset + offset
        self.offset = offset
        """From the start of the region, bytes."""
        self.nbytes = nbytes

    @property
    def region(self) -> str:
        """The name that the region was registered by."""
        return self._region.name

    def part(self, start: int, stop: int) -> Window:
        """Bytes `start` to `stop` of these."""
        return Window(self._region, self.offset + start, stop - start)

    def read_into(self, target: memoryview) -> None:
        """Fills a contiguous buffer of `nbytes` bytes.

        Raises InvalidRequest where the file has become shorter than the region.
        """
        if not self.nbytes:
            return
        left = target.cast("B")
        position = self._start
        while left:
            count = os.preadv(self._region.file, [left], position)
            if not count:
                raise self._cut_short()
            left = left[count:]
            position += count

    def read(self) -> bytearray:
        """The bytes. Raises as `read_into` does."""
        data = bytearray(self.nbytes)
        self.read_into(memoryview(data))
        return data

    def write(self, data: memoryview) -> None:
        """Writes a contiguous buffer of at most `nbytes` bytes to the beginning.

        Raises InvalidRequest where the file has become shorter than the region, RuntimeFailure where the file system
        takes no more.
        """
        if not data.nbytes:
            return
        left = data.cast("B")
        position = self._start
        # A write past its end would make the file longer again, which is not what the client asked for.
        if os.fstat(self._region.file).st_size < position + len(left):
            raise self._cut_short()
        while left:
            try:
                count = os.pwrite(self._region.file, left, position)
            except OSError as error:
                raise RuntimeFailure(
                    f"shared memory region '{self.region}' cannot be written: {error.strerror}"
                ) from error
            left = left[count:]
            position += count

    def _cut_short(self) -> InvalidRequest:
        return InvalidRequest(
            f"shared memory region '{self.region}' was registered with {self._region.byte_size} bytes from "
            f"{self._region.offset} of '{self._region.key}', which has become shorter: register it anew"
        )


class Regions:
    """The registered regions, by name. May be used from any thread.

    `most` is how many there may be. With `refusal`, a sentence, none can be registered.
    """

    def __init__(self, most: int = 0, refusal: str = "") -> None:
        self._most = most
        self._refusal = refusal
        self._lock = threading.Lock()
        self._by_name: dict[str, Region] = {}

    @property
    def enabled(self) -> bool:
        """Whether regions can be registered."""
        return not self._refusal

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens the object that shm_open calls `key` and registers a part of it, offset and size in bytes.

        Raises NotBuilt where shared memory is switched off, RegionExists where the name is taken, TooManyRegions where
        there are `most`, and InvalidRequest where the key names nothing that the server may use, or too little of it.
        """
        if self._refusal:
            raise NotBuilt(self._refusal)
        if not name or len(name.encode()) > _LONGEST_NAME:
            raise InvalidRequest(f"the name of a shared memory region is expected to have 1 to {_LONGEST_NAME} bytes")
        if byte_size < 1 or offset < 0:
            raise InvalidRequest(
                f"shared memory region '{name}' is expected to have 1 byte or more from offset 0 or more, "
                f"got {byte_size} from {offset}"
            )
        # Before the file is opened, and again after: nothing is opened for nothing, and no name is taken twice.
        self._check_room(name)
        region = Region(name, key, offset, byte_size, _open(name, key))
        size = os.fstat(region.file).st_size
        if offset + byte_size > size:
            raise InvalidRequest(
                f"shared memory region '{name}' is expected within the {size} bytes of '{key}', "
                f"got {byte_size} bytes from offset {offset}"
            )
        with self._lock:
            self._check_room(name)
            self._by_name[name] = region

    def unregister(self, name: str) -> None:
        """Forgets a region, or nothing where there is none of the name. Calls that use it may finish."""
        with self._lock:
            self._by_name.pop(name, None)

    def unregister_all(self) -> None:
        """Forgets every region."""
        with self._lock:
            self._by_name.clear()

    def status(self, name: str = "") -> Sequence[Region]:
        """The region of the name; every region where it is empty. Raises RegionNotFound."""
        if name:
            return [self._find(name)]
        with self._lock:
            return list(self._by_name.values())

    def window(self, tensor: str, place: Range) -> Window:
        """The bytes that a request says `tensor` is in.

        Raises RegionNotFound, and InvalidRequest where they reach out of the region.
        """
        region = self._by_name.get(place.region)
        if region is None:
            raise RegionNotFound(
                f"tensor '{tensor}' is in shared memory region '{place.region}', which is not registered: "
                "register it first"
            )
        if place.offset + place.byte_size > region.byte_size:
            raise InvalidRequest(
                f"tensor '{tensor}' is expected within the {region.byte_size} bytes of shared memory region "
                f"'{place.region}', got {place.byte_size} bytes from offset {place.offset}"
            )
        return Window(region, place.offset, place.byte_size)

    def _find(self, name: str) -> Region:
        region = self._by_name.get(name)
        if region is None:
            raise RegionNotFound(f"shared memory region '{name}' is not registered")
        return region

    def _check_room(self, name: str) -> None:
        if name in self._by_name:
            raise RegionExists(f"shared memory region '{name}' is registered already: unregister it first")
        if len(self._by_name) >= self._most:
            raise TooManyRegions(
                f"{self._most} shared memory regions are registered, as many as there may be: unregister one first"
            )


NO_REGIONS = Regions(refusal="this server has no shared memory")
"""For requests that come where nobody can register a region."""


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
