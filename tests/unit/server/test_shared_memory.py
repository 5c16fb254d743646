"""Registered regions: what may be registered, and what is left of it when clients misbehave."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from inferd_server.config import ServerConfig, SharedMemory
from inferd_server.errors import (
    ConfigurationError,
    InvalidRequest,
    NotBuilt,
    RegionExists,
    RegionNotFound,
    RuntimeFailure,
    ServerError,
    TooManyRegions,
)
from inferd_server.shared_memory.regions import Range, Regions, Window
from inferd_server.shared_memory.system import FOLDER, SystemRegion, most_regions, register
from support.shared_memory import DATA, open_files, shared_object


def test_a_window_reads_and_writes_its_bytes_and_no_others(regions: Regions, key: str) -> None:
    window = regions.window("x", Range("r", 4, 8))
    assert window.read() == DATA[20:28]
    assert window.part(2, 5).read() == DATA[22:25]
    window.write(memoryview(b"abc"))
    assert (FOLDER / key).read_bytes() == DATA[:20] + b"abc" + DATA[23:]
    assert regions.window("x", Range("r", 200, 0)).read() == b""


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_key_is_what_shm_open_takes(key: str, slash: str) -> None:
    regions = Regions(most=1)
    register(regions, "r", slash + key, 0, 256)
    assert [(region.name, region.key, region.offset, region.byte_size) for region in regions.status(SystemRegion)] == [
        ("r", slash + key, 0, 256)
    ]


@pytest.mark.parametrize(
    "hostile",
    ["", "/", ".", "..", "/..", "//x", "../etc/passwd", "/../etc/passwd", "a/b", "x\0y", "x" * 256, "é" * 128],
)
def test_a_key_that_is_a_path_or_no_name_is_refused(hostile: str) -> None:
    regions = Regions(most=1)
    with pytest.raises(InvalidRequest, match="expected the name of a shared memory object"):
        register(regions, "r", hostile, 0, 1)
    assert not regions.status(SystemRegion)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    target.write_bytes(b"secret")
    with shared_object(1) as path:
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(InvalidRequest, match="cannot be opened: Too many levels of symbolic links"):
            register(Regions(most=1), "r", path.name, 0, 6)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(make: Any) -> None:
    with shared_object(1) as path:
        path.unlink()
        make(path)
        try:
            with pytest.raises(InvalidRequest, match=r"no shared memory object|Is a directory"):
                register(Regions(most=1), "r", path.name, 0, 1)
        finally:
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_what_the_server_may_not_open_is_refused(key: str) -> None:
    (FOLDER / key).chmod(0)
    with pytest.raises(InvalidRequest, match="cannot be opened: Permission denied"):
        register(Regions(most=1), "r", key, 0, 1)


@pytest.mark.parametrize(
    ("name", "offset", "byte_size", "error", "text"),
    [
        ("", 0, 1, InvalidRequest, "expected to have 1 to 1024 bytes"),
        ("x" * 1025, 0, 1, InvalidRequest, "expected to have 1 to 1024 bytes"),
        ("n", 0, 0, InvalidRequest, "1 byte or more from offset 0 or more, got 0 from 0"),
        ("n", 0, 257, InvalidRequest, "within the 256 bytes of '.*', got 257 bytes from offset 0"),
        ("n", 256, 1, InvalidRequest, "got 1 bytes from offset 256"),
        ("n", 2**64 - 1, 2**64 - 1, InvalidRequest, "within the 256 bytes"),
        ("r", 0, 1, RegionExists, "region 'r' is registered already: unregister it first"),
    ],
)
def test_a_registration_that_makes_no_sense(
    regions: Regions, key: str, name: str, offset: int, byte_size: int, error: type[ServerError], text: str
) -> None:
    before = open_files()
    with pytest.raises(error, match=text):
        register(regions, name, key, offset, byte_size)
    assert [region.name for region in regions.status(SystemRegion)] == ["r"]
    assert open_files() == before


def test_a_key_that_is_not_there() -> None:
    with pytest.raises(InvalidRequest, match="'gone', which cannot be opened: No such file"):
        register(Regions(most=1), "r", "gone", 0, 1)


def test_regions_are_bounded(regions: Regions, key: str) -> None:
    for number in range(3):
        register(regions, str(number), key, 0, 1)
    with pytest.raises(TooManyRegions, match="4 shared memory regions are registered"):
        register(regions, "more", key, 0, 1)
    regions.unregister("0", SystemRegion)
    register(regions, "more", key, 0, 1)
    assert 0 < most_regions() <= 1024


def test_one_of_many_who_register_a_name_at_once_gets_it(key: str) -> None:
    regions = Regions(most=100)
    outcomes: list[str] = []
    together = threading.Barrier(16)

    def one(size: int) -> None:
        together.wait()
        try:
            register(regions, "r", key, 0, size)
            outcomes.append("registered")
        except RegionExists:
            outcomes.append("refused")

    threads = [threading.Thread(target=one, args=(size,)) for size in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 15 + ["registered"]


def test_an_unregistered_region_is_open_until_its_last_user_is_done(regions: Regions, key: str) -> None:
    path = str(FOLDER / key)
    window = regions.window("x", Range("r", 0, 4))
    regions.unregister("r", SystemRegion)
    regions.unregister("never there", SystemRegion)
    assert window.read() == DATA[16:20]
    assert path in open_files()
    with pytest.raises(RegionNotFound, match="tensor 'x' is in shared memory region 'r', which is not registered"):
        regions.window("x", Range("r", 0, 4))
    with pytest.raises(RegionNotFound, match="region 'r' is not registered"):
        regions.status(SystemRegion, "r")
    del window
    assert path not in open_files()
    register(regions, "r", key, 0, 1)
    regions.unregister_all(SystemRegion)
    assert not regions.status(SystemRegion)
    assert path not in open_files()


@pytest.mark.parametrize("size", [0, 22])
def test_a_file_that_was_cut_short_is_an_error_and_no_signal(regions: Regions, key: str, size: int) -> None:
    window = regions.window("x", Range("r", 0, 8))
    os.truncate(FOLDER / key, size)
    with pytest.raises(InvalidRequest, match=f"200 bytes from 16 of '{key}', which has become shorter"):
        window.read()
    with pytest.raises(InvalidRequest, match="has become shorter"):
        window.write(memoryview(b"x" * 8))
    assert (FOLDER / key).stat().st_size == size, "a write must not make it longer again"


def test_a_write_that_the_system_refuses_is_an_error_of_the_call(key: str) -> None:
    read_only = SystemRegion("r", key, 0, 256, os.open(FOLDER / key, os.O_RDONLY))
    with pytest.raises(RuntimeFailure, match="shared memory region 'r' cannot be written: Bad file descriptor"):
        Window(read_only, 0, 8).write(memoryview(b"x" * 8))


def test_a_window_out_of_its_region_is_refused(regions: Regions) -> None:
    for offset, size in ((0, 201), (200, 1), (2**63 - 1, 2**63 - 1)):
        with pytest.raises(InvalidRequest, match="'x' is expected within the 200 bytes of shared memory region 'r', "):
            regions.window("x", Range("r", offset, size))


def test_where_it_is_switched_off_nothing_can_be_registered(key: str) -> None:
    regions = Regions(most=1, refusal="off")
    assert not regions.enabled
    with pytest.raises(NotBuilt, match="off"):
        register(regions, "r", key, 0, 1)
    regions.unregister("r", SystemRegion)
    regions.unregister_all(SystemRegion)
    assert not regions.status(SystemRegion)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, True),
        ({"grpc_address": "::1"}, True),
        ({"grpc_address": "127.8.8.8"}, True),
        ({"grpc_address": "localhost"}, True),
        ({"grpc_address": "0.0.0.0"}, False),
        ({"grpc_address": "example.com"}, False),
        ({"grpc_address": "0.0.0.0", "shared_memory": SharedMemory.ON}, True),
        ({"workers": 2}, False),
        ({"shared_memory": SharedMemory.OFF}, False),
    ],
)
def test_who_may_register(settings: dict[str, Any], allowed: bool) -> None:
    config = ServerConfig(model_repository=Path(), **settings)
    assert (not config.shared_memory_refusal) is allowed


def test_several_workers_cannot_have_it() -> None:
    with pytest.raises(ConfigurationError, match="--shared-memory on needs --workers 1"):
        ServerConfig(model_repository=Path(), workers=2, shared_memory=SharedMemory.ON)
