"""The golden samples' file: written and read back, and refused whatever else it holds."""

from __future__ import annotations

import io
import json
import math
import random
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inferd_protocol import golden
from inferd_protocol.golden import Golden, GoldenError, Tolerance, difference, read, write

X = np.arange(6, dtype=np.float32).reshape(2, 3)
SAMPLES = Golden({"x": X, "a/b.npy": X.astype(np.uint8)}, {"y": X[:, :1]}, {"y": Tolerance(1e-3, 1e-2)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "golden.npz"
    write(path, SAMPLES)
    return path


def rewrite(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Changes the members of a file, which are bytes here."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=allow_pickle)
    return stream.getvalue()


def header(text: str, elements: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + elements


def manifest(**changes: Any) -> bytes:
    document = {"format": 1, "inputs": ["x", "a/b.npy"], "outputs": ["y"], "tolerances": [[0.1, 0.2]]} | changes
    return npy(np.frombuffer(json.dumps(document).encode(), np.uint8))


def test_what_is_written_is_read(file: Path) -> None:
    found = read(file)
    assert list(found.inputs) == ["x", "a/b.npy"]
    np.testing.assert_array_equal(found.inputs["x"], X)
    assert found.inputs["a/b.npy"].dtype == np.uint8
    np.testing.assert_array_equal(found.outputs["y"], X[:, :1])
    assert found.tolerances == SAMPLES.tolerances
    before = file.read_bytes()
    write(file, SAMPLES)
    assert file.read_bytes() == before


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GoldenError, match="'x' is object"):
        write(tmp_path / "f", Golden({"x": np.array([b"a"], object)}, {}, {}))
    monkeypatch.setattr(golden, "MOST_BYTES", 100)
    with pytest.raises(GoldenError, match="where at most 100 were expected"):
        write(tmp_path / "f", SAMPLES)
    assert list(tmp_path.iterdir()) == []


FLOAT_HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("input_0.npy", npy(np.array([{}], object), allow_pickle=True), "object"),
        ("input_0.npy", npy(np.array(["text"])), "<U4"),
        ("input_0.npy", npy(X)[:-1], "which is not what it holds"),
        ("input_0.npy", npy(X) + b"!", "which is not what it holds"),
        ("input_0.npy", header(FLOAT_HEADER % "(1000000000000,)"), "which is not what it holds"),
        ("input_0.npy", header(FLOAT_HEADER % f"(0, {10**40})"), "is no array of numbers"),
        ("input_0.npy", header(FLOAT_HEADER % "(-1, -1)", b"1234"), "is no array of numbers"),
        ("input_0.npy", header("[" * 5000), "is no array of numbers"),
        ("input_0.npy", b"nothing", "is no array of numbers"),
        ("input_0.npy", None, "its manifest is not one of golden samples: KeyError"),
        ("stranger.npy", npy(X), "holds stranger, which its manifest does not name"),
        ("manifest.npy", None, "its manifest is not one of golden samples: KeyError"),
        ("manifest.npy", npy(np.frombuffer(b"[]", np.uint8)), "its manifest is not one of golden samples"),
        ("manifest.npy", npy(np.frombuffer(b"[" * 100_000, np.uint8)), "its manifest is not one of golden samples"),
        ("manifest.npy", manifest(format=2), "it has format 2, where 1 was expected"),
        ("manifest.npy", manifest(inputs=["x", "x"]), "names an input twice"),
        ("manifest.npy", manifest(outputs=[]), "no list of names under 'outputs'"),
        ("manifest.npy", manifest(outputs=[3]), "no list of names under 'outputs'"),
        ("manifest.npy", manifest(tolerances=[]), "is not one of golden samples"),
        ("manifest.npy", manifest(tolerances=[[0.1]]), "is not one of golden samples"),
        ("manifest.npy", manifest(tolerances=[[10**400, 0]]), "is not one of golden samples"),
        ("manifest.npy", manifest(tolerances=[[-1, 0]]), "where finite numbers from 0 were expected"),
        ("manifest.npy", manifest(tolerances=[[math.nan, 0]]), "where finite numbers from 0 were expected"),
        ("manifest.npy", manifest(tolerances=[[0, math.inf]]), "where finite numbers from 0 were expected"),
    ],
)
def test_what_holds_no_samples_is_refused(name: str, content: bytes | None, message: str, file: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members.pop(name, None)
        if content is not None:
            members[name] = content

    rewrite(file, change)
    with pytest.raises(GoldenError, match=message) as refusal:
        read(file)
    assert "\n" not in str(refusal.value)


def test_torn_and_altered_files_are_refused_and_nothing_else_is_raised(file: Path) -> None:
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(GoldenError):
            read(file)
    chance = random.Random(3)
    refused = 0
    for _ in range(3000):
        altered = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            altered[chance.randrange(len(altered))] = chance.randrange(256)
        file.write_bytes(altered)
        try:
            read(file)
        except GoldenError:
            refused += 1
    # Some bytes mean nothing: times, attributes.
    assert refused > 1000


def test_a_file_of_zeros_without_end_is_refused_before_it_is_unpacked(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("input_0.npy", "w") as stream:
        for _ in range(128):
            stream.write(bytes(1024 * 1024))
    tracemalloc.start()
    with pytest.raises(GoldenError, match="its arrays have 134217728 bytes"):
        read(file)
    assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    tracemalloc.stop()


def test_a_file_that_understates_what_it_holds_is_refused(file: Path) -> None:
    content = npy(np.zeros(1_000_000, np.uint8))
    rewrite(file, lambda members: members.update({"input_0.npy": content}))
    whole = file.read_bytes()
    size = len(content).to_bytes(4, "little")
    assert whole.count(size) == 2
    file.write_bytes(whole.replace(size, (200).to_bytes(4, "little")))
    with pytest.raises(GoldenError, match=r"no whole \.npz file"):
        read(file)


def test_too_many_members_and_too_many_bytes_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(file, lambda members: members.update({f"m{number}": b"" for number in range(1024)}))
    with pytest.raises(GoldenError, match="more than 1024 members"):
        read(file)
    monkeypatch.setattr(golden, "MOST_BYTES", 1000)
    with pytest.raises(GoldenError, match="where at most 1000 were expected"):
        read(file)


def test_members_packed_otherwise_are_refused(file: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("manifest.npy", manifest())
    with pytest.raises(GoldenError, match="in a way that numpy does not use"):
        read(file)


@pytest.mark.parametrize(
    ("found", "expected", "apart"),
    [
        ([1.0, 2.0], [1.0, 2.05], None),
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([math.nan, math.inf], [math.nan, math.inf], None),
        ([math.nan], [1.0], math.inf),
        ([1.0, 0.0], [math.inf, 0.0], math.inf),
        ([math.inf, 0.0], [math.inf, 1.0], 1.0),
        ([], [], None),
    ],
)
def test_differences_of_floats(found: list[float], expected: list[float], apart: float | None) -> None:
    assert difference(np.array(found), np.array(expected), Tolerance(0.05, 0.01)) == apart


def test_whole_numbers_must_be_equal_whatever_the_tolerance() -> None:
    one, other = np.array([1, 2], np.uint8), np.array([1, 255], np.uint8)
    assert difference(one, other, Tolerance(1000.0, 0.0)) == 253
    assert difference(one, one.copy(), Tolerance(0.0, 0.0)) is None
    assert difference(np.array([True]), np.array([False]), Tolerance(9.0, 0.0)) == 1
