"""Where a model keeps its weights: found as `onnx` finds it, and refused where it leaves the model's folder."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from inferd_protocol import external_data
from inferd_protocol.external_data import ExternalDataError, data_files
from onnx import TensorProto, helper, numpy_helper
from support import models


def outside(name: str, **entries: object) -> onnx.TensorProto:
    """A tensor of one float that lies in another file."""
    made = TensorProto(name=name, dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        made.external_data.add(key=key, value=str(value))
    return made


def with_tensor(made: onnx.TensorProto) -> onnx.ModelProto:
    proto = models.classifier()
    proto.graph.initializer.append(made)
    return proto


@pytest.fixture
def write(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    folder = tmp_path / "outer" / "version"
    folder.mkdir(parents=True)
    (folder / "w").write_bytes(bytes(8))
    (tmp_path / "outer" / "secret").write_bytes(bytes(8))

    def written(proto: onnx.ModelProto) -> Path:
        (folder / "model.onnx").write_bytes(proto.SerializeToString())
        return folder / "model.onnx"

    return written


Write = Callable[[onnx.ModelProto], Path]


def body(tensor: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "body", [], [])


def everywhere() -> list[onnx.ModelProto]:
    """A model for each place in which a tensor can stand."""
    tensor = outside("t", location="w")
    sparse = onnx.SparseTensorProto(values=tensor, indices=tensor, dims=[1])
    graphs = [models.classifier() for _ in range(5)]
    graphs[0].graph.initializer.append(tensor)
    graphs[1].graph.sparse_initializer.append(sparse)
    graphs[2].training_info.add().algorithm.CopyFrom(body(tensor))
    graphs[3].functions.add(name="f").node.extend(body(tensor).node)
    graphs[4].functions.add(name="f").attribute_proto.append(helper.make_attribute("a", tensor))
    for value in (tensor, [tensor], sparse, [sparse], body(tensor), [body(tensor)]):
        made = models.classifier()
        made.graph.node[0].attribute.append(helper.make_attribute("value", value))
        graphs.append(made)
    return graphs


@pytest.mark.parametrize("place", range(11))
def test_tensors_are_found_wherever_they_stand(place: int, write: Write) -> None:
    assert data_files(write(everywhere()[place])) == ("w",)


def test_a_model_that_is_whole_has_none(write: Write, tmp_path: Path) -> None:
    assert data_files(write(models.classifier())) == ()
    proto = models.classifier({"location": "/etc/passwd"})
    assert data_files(write(proto)) == ()
    (tmp_path / "empty").touch()
    assert data_files(tmp_path / "empty") == ()


def test_several_files_and_folders_below(write: Write) -> None:
    proto = with_tensor(outside("a", location="w", offset=4, length=4))
    proto.graph.initializer.append(outside("b", location="./sub/v"))
    path = write(proto)
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "v").write_bytes(bytes(4))
    assert data_files(path) == ("sub/v", "w")


def test_what_onnx_writes_is_read(tmp_path: Path) -> None:
    proto = models.classifier()
    onnx.save(proto, tmp_path / "m", save_as_external_data=True, location="weights", size_threshold=0)
    assert data_files(tmp_path / "m") == ("weights",)
    found = onnx.load(tmp_path / "m").graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(found), models.CLASSIFIER_WEIGHTS)


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "sub/../../secret", "..", ".", "/", "w\0", "*/_ORT_MEM_ADDR_/*", "_ORT_MEM_ADDR_/w"],
)
def test_locations_outside_the_folder_are_refused(location: str, write: Write) -> None:
    with pytest.raises(ExternalDataError, match="expected a file below the model's own folder") as refusal:
        data_files(write(with_tensor(outside("t", location=location))))
    assert "\n" not in str(refusal.value)


def test_a_tensor_without_a_location_is_refused(write: Write) -> None:
    proto = with_tensor(outside("t", offset=1))
    proto.doc_string = "location"
    with pytest.raises(ExternalDataError, match="tensor 't' lies in ''"):
        data_files(write(proto))


def test_links_are_followed_within_the_folder_and_not_out_of_it(write: Write) -> None:
    path = write(with_tensor(outside("t", location="link")))
    link = path.parent / "link"
    link.symlink_to("w")
    assert data_files(path) == ("link",)
    for target in ("../secret", "/etc/passwd", str(path.parent.parent / "secret")):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(ExternalDataError, match="'link', a link that leaves the model's folder"):
            data_files(path)
    link.unlink()
    link.symlink_to("link")
    with pytest.raises(ExternalDataError, match="cannot be read"):
        data_files(path)
    link.unlink()
    link.symlink_to("..")
    with pytest.raises(ExternalDataError, match="leaves the model's folder"):
        data_files(write(with_tensor(outside("t", location="link/secret"))))


def test_a_version_folder_that_is_a_link_itself_is_a_folder(write: Write, tmp_path: Path) -> None:
    path = write(with_tensor(outside("t", location="w")))
    (tmp_path / "current").symlink_to(path.parent)
    assert data_files(tmp_path / "current" / "model.onnx") == ("w",)


def test_what_is_no_file_is_refused(write: Write) -> None:
    path = write(with_tensor(outside("t", location="pipe")))
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ExternalDataError, match="'pipe', which is no file"):
        data_files(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "v"}, "'v', which is missing"),
        ({"location": "w", "offset": 8, "length": 4}, "'w', which has 8 bytes, expected at least 12: it is cut off"),
        ({"location": "w", "length": 9}, "expected at least 9"),
        ({"location": "w", "offset": -4}, "has the offset '-4', expected a whole number from 0"),
        ({"location": "w", "length": "4 "}, "has the length '4 '"),
        ({"location": "w", "length": "9" * 5000}, "it has a name of 5000 bytes"),
        ({"location": "w", "offset": 2**63}, "expected a whole number"),
        ({"location": "w" * 1000}, "cannot be read"),
    ],
)
def test_data_that_is_missing_or_cut_off_is_refused(entries: dict[str, object], message: str, write: Write) -> None:
    with pytest.raises(ExternalDataError, match=message):
        data_files(write(with_tensor(outside("t", **entries))))


def test_a_key_that_is_given_twice_is_refused(write: Write) -> None:
    tensor = outside("t", location="w")
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(ExternalDataError, match="gives its 'location' twice"):
        data_files(write(with_tensor(tensor)))


def test_a_location_is_seen_whatever_the_data_location_says(write: Write) -> None:
    tensor = outside("t", location="../secret")
    tensor.data_location = TensorProto.DEFAULT
    with pytest.raises(ExternalDataError, match=r"lies in '\.\./secret'"):
        data_files(write(with_tensor(tensor)))


def message(number: int, content: bytes, tag: bytes = b"") -> bytes:
    """A field by hand, its size in three bytes."""
    size = bytes([len(content) & 0x7F | 0x80, len(content) >> 7 & 0x7F | 0x80, len(content) >> 14])
    return (tag or bytes([number << 3 | 2])) + size + content


ENTRY = message(1, b"location") + message(2, b"/etc/passwd")


def test_tags_that_are_written_longer_than_they_need_be_hide_nothing(tmp_path: Path) -> None:
    # Field 5 (0x2a) as a tag of 33 bits, of which protobuf's readers keep 32.
    graph = message(5, message(13, ENTRY), tag=b"\xaa\x80\x80\x80\x10")
    (tmp_path / "m").write_bytes(message(7, graph))
    with pytest.raises(ExternalDataError, match="lies in '/etc/passwd'"):
        data_files(tmp_path / "m")


def test_bounds(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = message(5, message(13, ENTRY))
    for _ in range(100):
        graph = message(1, message(5, message(6, graph)))
    (tmp_path / "m").write_bytes(message(7, graph))
    with pytest.raises(ExternalDataError, match="more than 100 deep"):
        data_files(tmp_path / "m")
    monkeypatch.setattr(external_data, "MOST_FIELDS", 10)
    with pytest.raises(ExternalDataError, match="more than 10 fields"):
        data_files(write(with_tensor(outside("t", location="w"))))


def outcome(path: Path) -> tuple[str, ...] | str:
    """The files, or why not."""
    try:
        return data_files(path)
    except ExternalDataError as error:
        return str(error)


def test_torn_and_altered_files_are_refused_or_read_and_nothing_else_is_raised(write: Write) -> None:
    path = write(with_tensor(outside("t", location="w", offset=0, length=4)))
    whole = path.read_bytes()
    chance = random.Random(5)
    variants = [whole[:size] for size in range(len(whole))]
    for _ in range(3000):
        altered = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            altered[chance.randrange(len(altered))] = chance.randrange(256)
        variants.append(bytes(altered))
    for content in variants:
        path.write_bytes(content)
        found = outcome(path)
        if isinstance(found, str):
            assert "\n" not in found
        else:
            assert all((path.parent / name).resolve().is_relative_to(path.parent.resolve()) for name in found)


def test_a_file_that_is_cut_short_while_it_is_read_ends_nobody(write: Write) -> None:
    path = write(with_tensor(outside("t", location="w", length=8)))
    whole = path.read_bytes()
    padded = whole + message(20, bytes(1 << 20))
    stop = threading.Event()

    def rewrite() -> None:
        # In place, as a copy onto a file does it: a mapping of it would end the process at its next read.
        while not stop.is_set():
            path.write_bytes(padded)
            os.truncate(path, 0)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        outcomes = {outcome(path) for _ in range(300)}
    finally:
        stop.set()
        thread.join()
    assert outcomes <= {("w",), (), "it is no whole ONNX file", "it is no ONNX file"}, outcomes
    path.write_bytes(whole)
    assert outcome(path) == ("w",)
