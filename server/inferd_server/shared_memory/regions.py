"""Memory that clients registered, and the parts of it that tensors lie in."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from inferd_server.errors import InvalidRequest, NotBuilt, RegionExists, RegionNotFound, TooManyRegions

_LONGEST_NAME = 1024


class Region(ABC):
    """`byte_size` bytes that a client can reach too, known to requests by `name`. May be used from any thread.

    What it keeps open is closed with the last reference to it.
    """

    __slots__ = ("__weakref__", "byte_size", "name")

    def __init__(self, name: str, byte_size: int) -> None:
        self.name = name
        self.byte_size = byte_size

    @abstractmethod
    def read_into(self, start: int, target: memoryview) -> None:
        """Fills a contiguous buffer of bytes with those from `start` on.

        Raises InvalidRequest where the client has taken the memory away, RuntimeFailure where it cannot be read.
        """

    @abstractmethod
    def write(self, start: int, data: memoryview) -> None:
        """Writes a contiguous buffer of bytes from `start` on. Raises as `read_into` does."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where a request says that a tensor is: `byte_size` bytes from `offset` of the region called `region`."""

    region: str
    offset: int
    byte_size: int


class Window:
    """Bytes of a region. It keeps the region open, whether or not it is still registered."""

    __slots__ = ("_region", "nbytes", "offset")

    def __init__(self, region: Region, offset: int, nbytes: int) -> None:
        self._region = region
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
        """Fills a contiguous buffer of `nbytes` bytes. Raises as `Region.read_into` does."""
        if self.nbytes:
            self._region.read_into(self.offset, target.cast("B"))

    def read(self) -> bytearray:
        """The bytes. Raises as `Region.read_into` does."""
        data = bytearray(self.nbytes)
        self.read_into(memoryview(data))
        return data

    def write(self, data: memoryview) -> None:
        """Writes a contiguous buffer of at most `nbytes` bytes to the beginning. Raises as `Region.write` does."""
        if data.nbytes:
            self._region.write(self.offset, data.cast("B"))


_Kind = TypeVar("_Kind", bound=Region)


class Regions:
    """The registered regions, by name. May be used from any thread.

    Names are common to all kinds of memory, since a request says the name alone; what is told of and forgotten is of
    the kind that is asked for.

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

    def add(self, name: str, open_region: Callable[[], Region]) -> None:
        """Opens a region and registers it.

        Raises NotBuilt where shared memory is switched off, RegionExists where the name is taken, TooManyRegions where
        there are `most`, InvalidRequest for a name that is none, and what `open_region` does.
        """
        if self._refusal:
            raise NotBuilt(self._refusal)
        if not name or len(name.encode()) > _LONGEST_NAME:
            raise InvalidRequest(f"the name of a shared memory region is expected to have 1 to {_LONGEST_NAME} bytes")
        # Before it is opened, and again after: nothing is opened for nothing, and no name is taken twice.
        self._check_room(name)
        region = open_region()
        with self._lock:
            self._check_room(name)
            self._by_name[name] = region

    def unregister(self, name: str, kind: type[Region]) -> None:
        """Forgets a region of a kind, or nothing where there is none of the name. Calls that use it may finish."""
        with self._lock:
            if isinstance(self._by_name.get(name), kind):
                del self._by_name[name]

    def unregister_all(self, kind: type[Region]) -> None:
        """Forgets every region of a kind."""
        with self._lock:
            self._by_name = {name: region for name, region in self._by_name.items() if not isinstance(region, kind)}

    def status(self, kind: type[_Kind], name: str = "") -> Sequence[_Kind]:
        """The region of a kind and a name; every one of the kind where the name is empty. Raises RegionNotFound."""
        with self._lock:
            found = [region for region in self._by_name.values() if isinstance(region, kind)]
        if not name:
            return found
        if not (named := [region for region in found if region.name == name]):
            raise RegionNotFound(f"shared memory region '{name}' is not registered")
        return named

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

    def _check_room(self, name: str) -> None:
        if name in self._by_name:
            raise RegionExists(f"shared memory region '{name}' is registered already: unregister it first")
        if len(self._by_name) >= self._most:
            raise TooManyRegions(
                f"{self._most} shared memory regions are registered, as many as there may be: unregister one first"
            )


NO_REGIONS = Regions(refusal="this server has no shared memory")
"""For requests that come where nobody can register a region."""
