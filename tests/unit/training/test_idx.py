"""The IDX parser: what it reads, and each thing that it refuses."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_training.data.idx import encode, parse_images, parse_labels, read_bytes
from inferd_training.errors import DataError

IMAGES = encode(np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28))
LABELS = encode(np.array([3, 9], np.uint8))


def test_reads_what_the_format_says() -> None:
    # By hand, not by `encode`: magic 0x0801, count 3, then the labels.
    assert parse_labels(b"\x00\x00\x08\x01\x00\x00\x00\x03\x05\x00\x09", "labels", 10).tolist() == [5, 0, 9]
    header = b"\x00\x00\x08\x03\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x03"
    images = parse_images(header + bytes([1, 2, 3, 4, 5, 6]), "images", (2, 3))
    assert images.tolist() == [[[1, 2, 3], [4, 5, 6]]]
    assert images.dtype == np.uint8


@given(st.integers(1, 4))
def test_encode_and_parse_are_inverse(count: int) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    assert np.array_equal(parse_images(encode(images), "images"), images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGES[:-1], "truncated: its header announces 1568 bytes after it, 1567 came"),
        (IMAGES + b"\0", "too long"),
        (IMAGES[:9], "ends within its header"),
        (b"", "ends within its header"),
        (LABELS, "holds an IDX file of labels: are the files swapped"),
        (b"PK\x03\x04" + bytes(40), "magic number 0x504b0304"),
        (encode(np.zeros((2, 32, 32), np.uint8)), "32x32 pixels where 28x28 were expected"),
        (encode(np.zeros((0, 28, 28), np.uint8)), "no entries"),
    ],
)
def test_refuses_images(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        parse_images(content, "train-images")
    assert "train-images" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGES, "holds an IDX file of images: are the files swapped"),
        (LABELS[:-1], "truncated"),
        (encode(np.array([1, 10], np.uint8)), "the label 10 at position 1 where 0 to 9 were expected"),
    ],
)
def test_refuses_labels(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_labels(content, "labels", 10)


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    path = tmp_path / "without-suffix"
    path.write_bytes(gzip.compress(LABELS))
    assert read_bytes(path) == LABELS


@pytest.mark.parametrize("damage", [slice(None, -9), slice(None, 12)])
def test_refuses_a_damaged_gzip_file(tmp_path: Path, damage: slice) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(LABELS)[damage])
    with pytest.raises(DataError, match="damaged gzip file"):
        read_bytes(path)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_bytes(tmp_path / "nothing")
