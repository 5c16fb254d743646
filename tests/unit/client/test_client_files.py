"""Files in and out of the commands."""

from __future__ import annotations

import csv
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferd_client.errors import DeadlineExceeded
from inferd_client.files import fitting, images, sources, tables
from inferd_client.files.atomic import atomic_file
from inferd_client.files.idx import IdxFile
from inferd_client.metadata import TensorMetadata
from inferd_protocol.command import CommandError
from inferd_protocol.datatypes import BY_NAME
from PIL import Image


def tensor(shape: tuple[int, ...], datatype: str = "UINT8", name: str = "image") -> TensorMetadata:
    return TensorMetadata(name, BY_NAME[datatype], shape)


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def rows_of(
    path: Path, size: int, wanted: TensorMetadata | None = None
) -> tuple[sources.Source, list[Any], np.ndarray]:
    with sources.open_source(path, wanted or tensor((-1, 4, 3))) as source:
        batches = list(source.batches(size))
        keys = [key for chunk, _ in batches for key in chunk]
        return source, keys, np.concatenate([np.array(rows) for _, rows in batches])


PIXELS = np.arange(7 * 4 * 3, dtype=np.uint8).reshape(7, 4, 3)


class TestSources:
    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize("size", [1, 3, 7, 100])
    def test_idx(self, tmp_path: Path, compressed: bool, size: int) -> None:
        path = tmp_path / "images"
        path.write_bytes(gzip.compress(idx(PIXELS)) if compressed else idx(PIXELS))
        source, keys, rows = rows_of(path, size)
        assert (source.rows, source.key, keys) == (7, "row", list(range(7)))
        np.testing.assert_array_equal(rows, PIXELS)

    @pytest.mark.parametrize(
        ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
    )
    def test_idx_types(self, tmp_path: Path, code: int, dtype: str) -> None:
        path = tmp_path / "numbers.idx"
        array = np.array([[1, 2], [3, 100]], dtype)
        path.write_bytes(idx(array, code))
        rows = rows_of(path, 2)[2]
        np.testing.assert_array_equal(rows, array)
        assert rows.dtype == np.dtype(dtype)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            pytest.param(idx(PIXELS)[:-1], "cut off", id="cut off"),
            pytest.param(idx(PIXELS)[:9], "cut off", id="cut off in the header"),
            pytest.param(idx(PIXELS) + b"x", "goes on after the 7 rows", id="too long"),
            pytest.param(b"\0\0\x07\x01" + bytes(4), "is no IDX file", id="unknown type"),
            pytest.param(b"\0\0\x08\x00", "is no IDX file", id="no axes"),
            pytest.param(gzip.compress(idx(PIXELS))[:-20], "cannot read", id="gzip cut off"),
            pytest.param(gzip.compress(b"text"), "is no IDX file", id="gzip of something else"),
            pytest.param(idx(PIXELS[:0]), "holds no rows", id="empty"),
            pytest.param(b"text", "neither an IDX file, an NPY file nor a folder", id="something else"),
            pytest.param(b"", "neither an IDX file", id="nothing"),
            pytest.param(b"\x93NUMPY\x09", "as an array", id="broken npy"),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, data: bytes, message: str) -> None:
        path = tmp_path / "data"
        path.write_bytes(data)
        with pytest.raises(CommandError, match=message):
            rows_of(path, 3)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="No such file"):
            rows_of(tmp_path / "nothing", 3)

    @given(data=st.binary(max_size=40))
    def test_no_bytes_break_the_reader(self, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = tmp_path_factory.getbasetemp() / "any.idx"
        path.write_bytes(b"\0\0" + data)
        try:
            file = IdxFile(path)
        except CommandError:
            return
        try:
            if np.prod(file.shape, dtype=float) < 1e4:
                assert sum(len(rows) for rows in file.batches(1000)) == file.shape[0]
        except CommandError:
            pass
        finally:
            file.close()

    @pytest.mark.parametrize("size", [1, 3, 100])
    def test_npy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        monkeypatch.setattr(sources, "MAPPED_BYTES", 40)  # a map holds some batches, or a single larger one
        path = tmp_path / "rows.npy"
        np.save(path, PIXELS.astype("f4"))
        source, keys, rows = rows_of(path, size)
        assert (source.rows, source.key, keys) == (7, "row", list(range(7)))
        np.testing.assert_array_equal(rows, PIXELS)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.asfortranarray(PIXELS), "Fortran"),
            (np.array(3), "single number"),
            (np.zeros((0, 2)), "as an array|holds no rows"),
            (np.array(["a", None]), "as an array"),
        ],
    )
    def test_npy_that_cannot_be_scored(self, tmp_path: Path, array: np.ndarray, message: str) -> None:
        path = tmp_path / "rows.npy"
        np.save(path, array, allow_pickle=True)
        with pytest.raises(CommandError, match=message):
            rows_of(path, 3)

    def test_a_folder_goes_by_name(self, tmp_path: Path) -> None:
        for name in ("b.png", "a.PNG", "c.jpg"):
            Image.fromarray(PIXELS[0]).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no picture")
        source, keys, rows = rows_of(tmp_path, 2)
        assert (source.rows, source.key, keys) == (3, "file", ["a.PNG", "b.png", "c.jpg"])
        np.testing.assert_array_equal(rows[0], PIXELS[0])

    def test_a_folder_without_pictures(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="holds no rows"):
            rows_of(tmp_path, 2)

    def test_a_folder_for_a_model_of_any_size(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match="any size"):
            rows_of(tmp_path, 2, tensor((-1, -1, -1, 3)))


class TestImages:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((-1, 8, 6), (8, 6)),
            ((-1, 8, 6, 1), (8, 6, 1)),
            ((-1, 8, 6, 3), (8, 6, 3)),
            ((-1, 3, 8, 6), (3, 8, 6)),
            ((1, 1, 8, 6), (1, 8, 6)),
            ((-1, -1, -1, 3), (20, 10, 3)),
        ],
    )
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
    def test_the_shape_of_the_input_decides(
        self, tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...], mode: str
    ) -> None:
        path = tmp_path / "a.png"
        Image.new(mode, (10, 20)).save(path)
        pixels = images.read(path, images.image_format(tensor(shape)))
        assert pixels.shape == expected
        assert pixels.dtype == np.uint8

    def test_pixels_of_the_right_size_are_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.fromarray(PIXELS[0]).save(path)
        np.testing.assert_array_equal(images.read(path, images.image_format(tensor((-1, 4, 3)))), PIXELS[0])

    def test_a_photograph_is_turned_upright(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("L", (10, 20)).save(path, exif=exif)
        assert images.read(path, images.image_format(tensor((-1, -1, -1)))).shape == (10, 20)

    @pytest.mark.parametrize("shape", [(-1, 784), (-1,), (-1, 8, 6, 4), (-1, 1, 8, 6, 3)])
    def test_an_input_that_takes_no_pictures(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(CommandError, match=r"not one of pictures: give the rows as \.npy"):
            images.image_format(tensor(shape))

    @pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "INT8"])
    def test_a_datatype_that_holds_no_pixels(self, datatype: str) -> None:
        with pytest.raises(CommandError, match="cannot hold 0 to 255"):
            images.image_format(tensor((-1, 8, 6), datatype))

    def test_what_is_no_picture(self, tmp_path: Path) -> None:
        wanted = images.image_format(tensor((-1, 8, 6)))
        (tmp_path / "a.png").write_bytes(b"no picture")
        with pytest.raises(CommandError, match="no picture that can be read"):
            images.read(tmp_path / "a.png", wanted)
        with pytest.raises(CommandError, match="cannot read"):
            images.read(tmp_path / "b.png", wanted)
        Image.new("L", (300, 300), 7).save(tmp_path / "c.png")
        (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:-30])
        with pytest.raises(CommandError, match="cannot read"):
            images.read(tmp_path / "c.png", wanted)
        Image.new("I;16", (4, 4)).save(tmp_path / "d.png")
        with pytest.raises(CommandError, match="more than 8 bits"):
            images.read(tmp_path / "d.png", wanted)


class TestFitting:
    def test_axes_of_one_may_be_missing_or_superfluous(self) -> None:
        for shape in ((5, 4, 3), (5, 4, 3, 1), (5, 1, 4, 3)):
            rows = np.zeros(shape, np.uint8)
            assert fitting.adapt(rows, tensor((-1, 4, 3, 1)), None, False).shape == (5, 4, 3, 1)
            assert fitting.adapt(rows, tensor((-1, 4, 3)), None, False).shape == (5, 4, 3)

    def test_rows_of_another_shape(self) -> None:
        with pytest.raises(
            CommandError, match=r"rows of shape \[3, 4\] do not fit input 'image' of shape \[-1, 4, 3\]"
        ):
            fitting.adapt(np.zeros((5, 3, 4), np.uint8), tensor((-1, 4, 3)), None, False)

    @pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
    def test_scale_and_invert(self, datatype: str) -> None:
        rows = np.array([[0, 255]], np.uint8)
        scaled = fitting.adapt(rows, tensor((-1, 2), datatype), 1 / 255, True)
        np.testing.assert_array_equal(scaled, [[1, 0]])
        assert scaled.dtype == (np.float32 if datatype == "BF16" else BY_NAME[datatype].numpy)

    def test_what_cannot_be_scaled_or_inverted(self) -> None:
        with pytest.raises(CommandError, match="--scale is for numbers and an input of floats: 'image' takes UINT8"):
            fitting.adapt(np.zeros((1, 2), np.uint8), tensor((-1, 2)), 2.0, False)
        with pytest.raises(CommandError, match=r"--invert is for values of 0 to 255 \(uint8\), these are float32"):
            fitting.adapt(np.zeros((1, 2), np.float32), tensor((-1, 2), "FP32"), None, True)

    def test_choosing(self) -> None:
        a, b = tensor((1,), name="a"), tensor((1,), name="b")
        assert fitting.choose("m", "input", (a,), None) is a
        assert fitting.choose("m", "input", (a, b), "b") is b
        with pytest.raises(CommandError, match="model 'm' has the inputs a, b: choose one with --input"):
            fitting.choose("m", "input", (a, b), None)
        with pytest.raises(CommandError, match="model 'm' has no output 'c': it has a, b"):
            fitting.choose("m", "output", (a, b), "c")


def write(path: Path, batches: list[tuple[Any, dict[str, np.ndarray]]], **layout: Any) -> None:
    rows = sum(len(keys) for keys, _ in batches)
    with atomic_file(path) as file:
        table = tables.new_table(
            path, file, tables.Layout(**{"rows": rows, "key": "row", "classify": None, "labels": {}, **layout})
        )
        for keys, outputs in batches:
            table.write(keys, outputs)
        table.finish()


P = np.array([[0.1, 0.9], [0.7, 0.3], [0.5, 0.5]], np.float32)


class TestTables:
    def test_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "o.csv"
        outputs = {
            "p": P,
            "one": np.array([1, 2, 3], np.int64),
            "text": np.array([[b"a,b"], [b'"'], [b"\xff"]], object),
        }
        write(
            path,
            [(range(2), {k: v[:2] for k, v in outputs.items()}), (range(2, 3), {k: v[2:] for k, v in outputs.items()})],
            classify="p",
            labels={0: "no", 1: "yes"},
        )
        with path.open(newline="") as file:
            assert list(csv.reader(file)) == [
                ["row", "predicted", "label", "p_0", "p_1", "one", "text"],
                ["0", "1", "yes", "0.1", "0.9", "1", "a,b"],
                ["1", "0", "no", "0.7", "0.3", "2", '"'],
                ["2", "0", "no", "0.5", "0.5", "3", "\\xff"],
            ]

    def test_csv_of_many_axes_and_file_names(self, tmp_path: Path) -> None:
        path = tmp_path / "o.csv"
        write(path, [(["b,1.png", "c.png"], {"p": np.arange(8, dtype=np.float16).reshape(2, 2, 2)})], key="file")
        with path.open(newline="") as file:
            assert list(csv.reader(file)) == [
                ["file", "p_0_0", "p_0_1", "p_1_0", "p_1_1"],
                ["b,1.png", "0", "1", "2", "3"],
                ["c.png", "4", "5", "6", "7"],
            ]

    def test_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "o.parquet"
        outputs = {"p": P, "deep": np.arange(12, dtype=np.float16).reshape(3, 2, 2), "one": np.array([[1], [2], [3]])}
        write(path, [(range(3), outputs)], classify="p", labels={1: "yes"})
        table = parquet.read_table(path)
        assert table.column_names == ["row", "predicted", "label", "p", "deep", "one"]
        assert table["label"].to_pylist() == ["yes", None, None]
        assert str(table.schema.field("p").type).startswith("fixed_size_list<")
        assert json.loads(table.schema.field("deep").metadata[b"shape"]) == [2, 2]
        np.testing.assert_array_equal(np.array(table["p"].to_pylist(), np.float32), P)
        assert table["deep"].to_pylist()[1] == [4, 5, 6, 7]
        assert table["one"].to_pylist() == [1, 2, 3]

    def test_parquet_gathers_batches_into_row_groups(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "ROW_GROUP_ROWS", 10)
        monkeypatch.setattr(tables, "CHUNK_ROWS", 2)
        path = tmp_path / "o.parquet"
        write(path, [(range(n, n + 3), {"p": P}) for n in range(0, 30, 3)])
        assert parquet.read_table(path)["row"].to_pylist() == list(range(30))
        groups = parquet.ParquetFile(path).metadata
        assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [12, 12, 6]

    @pytest.mark.parametrize("name", ["o.csv", "o.parquet"])
    def test_batches_are_gathered_in_order(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(tables, "CHUNK_ROWS", 5)
        files = [f"{number}.png" for number in range(21)]
        write(tmp_path / name, [(files[n : n + 3], {"p": P + n}) for n in range(0, 21, 3)], key="file")
        if name == "o.csv":
            with (tmp_path / name).open(newline="") as file:
                rows = [[row[0], float(row[1])] for row in list(csv.reader(file))[1:]]
        else:
            table = parquet.read_table(tmp_path / name)
            rows = [
                [key, values[0]] for key, values in zip(*(table[c].to_pylist() for c in ("file", "p")), strict=True)
            ]
        assert [row[0] for row in rows] == files
        np.testing.assert_allclose([row[1] for row in rows], [P[n % 3, 0] + n // 3 * 3 for n in range(21)], rtol=1e-6)

    @pytest.mark.parametrize("dtype", ["f2", "f4", "i8", "?"])
    def test_npy(self, tmp_path: Path, dtype: str) -> None:
        path = tmp_path / "o.npy"
        array = np.arange(12).reshape(3, 2, 2).astype(dtype)
        write(path, [(range(2), {"p": array[:2]}), (range(2, 3), {"p": array[2:]})])
        loaded = np.load(path)
        np.testing.assert_array_equal(loaded, array)
        assert loaded.dtype == array.dtype

    def test_npy_holds_one_array_of_numbers(self, tmp_path: Path) -> None:
        path = tmp_path / "o.npy"
        with pytest.raises(CommandError, match="choose one of p, q with --outputs"):
            write(path, [(range(3), {"p": P, "q": P})])
        with pytest.raises(CommandError, match="is text"):
            write(path, [(range(1), {"p": np.array([b"a"], object)})])
        assert list(tmp_path.iterdir()) == []

    def test_the_extension_chooses(self) -> None:
        for good in ("a.csv", "a.PARQUET", "b/a.npy"):
            tables.check_format(Path(good))
        with pytest.raises(CommandError, match=r"a\.txt ends in none of \.csv, \.parquet, \.npy"):
            tables.check_format(Path("a.txt"))


class TestAtomicFile:
    def test_it_takes_the_place_of_what_was_there(self, tmp_path: Path) -> None:
        path = tmp_path / "o"
        path.write_text("old")
        with atomic_file(path) as file:
            file.write(b"new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
    def test_nothing_is_left_behind(self, tmp_path: Path, error: type[BaseException]) -> None:
        path = tmp_path / "o"
        path.write_text("old")
        with pytest.raises(error), atomic_file(path):
            raise error
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_full_disk_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match=r"cannot write .*: No space left"), atomic_file(tmp_path / "o"):
            raise OSError(28, "No space left on device")
        assert list(tmp_path.iterdir()) == []

    def test_a_deadline_is_no_full_disk(self, tmp_path: Path) -> None:
        with pytest.raises(DeadlineExceeded), atomic_file(tmp_path / "o"):
            raise DeadlineExceeded("late")

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CommandError, match=r"cannot write to .*: No such file"), atomic_file(tmp_path / "no" / "o"):
            pass

    def test_a_folder_of_that_name(self, tmp_path: Path) -> None:
        (tmp_path / "o").mkdir()
        with pytest.raises(CommandError, match="cannot write"), atomic_file(tmp_path / "o") as file:
            file.write(b"x")
        assert [path.name for path in tmp_path.iterdir()] == ["o"]
