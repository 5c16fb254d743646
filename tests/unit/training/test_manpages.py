"""Debian's manual pages as data: downloaded by Debian's programs (here: stand-ins), read, never installed."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from inferd_training.data import datasets, debian, manpages, tsv
from inferd_training.data.passages import Passage
from inferd_training.errors import DataError, SourceUnavailable
from tiny_texts import manual, package, put_packages, roff

Put = Callable[[str, str], Path]

FOLDERS = {"German": "de/", "English": "", "Portuguese": "pt_BR/"}
APT = """echo "$@" >> {calls}
shift
for package; do echo > "$package"_1%3a4.2-1_all.deb; done"""
DPKG = """case "$1" in
--fsys-tarfile) cat {packages}/"${{2%%_*}}".tar ;;
--field) test "$3" = Version && echo "1:4.2-1" ;;
*) exit 2 ;;
esac"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    put_packages(
        folder,
        {
            name: package(manual(language, FOLDERS.get(language, f"{language[:2].lower()}/")))
            for language, name in manpages.PACKAGES.items()
        },
    )
    return folder


@pytest.fixture
def apt(packages: Path, program: Put, tmp_path: Path) -> Path:
    """Stand-ins for apt-get and dpkg-deb that have the packages; the calls of apt-get are written to the file."""
    calls = tmp_path / "calls"
    program("apt-get", APT.format(calls=calls))
    program("dpkg-deb", DPKG.format(packages=packages))
    return calls


def test_the_pages_become_a_data_set_that_is_kept(apt: Path, tmp_path: Path) -> None:
    data = datasets.load("manpages", cache=tmp_path)
    assert data.labels == tuple(manpages.PACKAGES)
    assert data.source == "apt-get download of Debian's manual pages"
    assert dict(data.packages) == dict.fromkeys(manpages.PACKAGES.values(), "1:4.2-1")
    assert data.validation is not None
    for part in (data.train, data.validation, data.test):
        assert part.inputs.shape == (len(part), 128)
        assert set(part.truth.tolist()) == set(range(8))
    kept = tmp_path / "datasets" / "manpages"
    assert sorted(path.name for path in kept.iterdir()) == ["origin.json", "test.tsv", "train.tsv", "validation.tsv"]
    again = datasets.load("manpages", cache=tmp_path, sources=())
    assert (again.source, again.sha256, again.packages) == ("the cache", data.sha256, data.packages)
    assert apt.read_text().splitlines() == [f"download {' '.join(manpages.PACKAGES.values())}"]


def test_the_same_packages_give_the_same_files(apt: Path, tmp_path: Path) -> None:
    one, two = (datasets.load("manpages", cache=tmp_path / name) for name in ("one", "two"))
    assert one.sha256 == two.sha256


def test_a_cache_that_was_changed_is_replaced(apt: Path, tmp_path: Path) -> None:
    data = datasets.load("manpages", cache=tmp_path)
    kept = tmp_path / "datasets" / "manpages"
    for damage in (kept / tsv.TEST_TEXT, kept / manpages.ORIGIN):
        damage.write_bytes(damage.read_bytes()[:-20])
        with pytest.raises(DataError, match=r"the cache: (test\.tsv|origin\.json) from the cache is"):
            datasets.load("manpages", cache=tmp_path, sources=())
        assert datasets.load("manpages", cache=tmp_path).sha256 == data.sha256
        assert datasets.load("manpages", cache=tmp_path).source == "the cache"


def test_the_kept_files_are_the_same_data_in_a_folder_of_the_users(apt: Path, tmp_path: Path) -> None:
    data = datasets.load("manpages", cache=tmp_path)
    own = datasets.load("manpages", tmp_path / "datasets" / "manpages")
    assert own.source == "the user's own files"
    assert own.sha256 == data.sha256


def test_a_package_without_pages_is_refused(apt: Path, packages: Path, tmp_path: Path) -> None:
    put_packages(packages, {"manpages-fr": package({"usr/share/doc/manpages-fr/copyright": b"none"})})
    with pytest.raises(DataError, match="manpages-fr has no manual page that could be read"):
        datasets.load("manpages", cache=tmp_path)


def test_a_package_that_is_damaged_is_refused(apt: Path, packages: Path, tmp_path: Path) -> None:
    (packages / "manpages-pl.tar").write_bytes(b"no archive")
    with pytest.raises(DataError, match="manpages-pl is a damaged archive"):
        datasets.load("manpages", cache=tmp_path)


def test_a_package_that_apt_does_not_leave_is_named(program: Put, tmp_path: Path) -> None:
    program("apt-get", "echo > manpages_6.03-2_all.deb")
    with pytest.raises(SourceUnavailable, match="apt-get download left no file of manpages-de, manpages-fr"):
        debian.download(["manpages", "manpages-de", "manpages-fr"], tmp_path)


def test_offline_it_says_what_to_give(program: Put, tmp_path: Path) -> None:
    program("apt-get", 'echo "E: no network" >&2; exit 100')
    with pytest.raises(DataError) as refusal:
        datasets.load("manpages", cache=tmp_path)
    message = str(refusal.value)
    assert "apt-get failed with status 100 (E: no network)" in message
    assert "train.tsv and test.tsv" in message
    assert "\n" not in message


def test_only_manual_pages_are_read() -> None:
    wanted = roff("German", "ja")
    archive = package(
        {
            "usr/share/man/de/man1/ja.1.gz": wanted,
            "usr/share/man/man7/auch.7.gz": wanted,
            "usr/share/man/pt_BR/man8/auch.8.gz": wanted,
            "usr/share/doc/man1/nein.1.gz": wanted,
            "usr/share/man/de/man1/tief/nein.1.gz": wanted,
            "usr/share/man/de/man1/../../nein.1.gz": wanted,
            "usr/share/man/de/man1/plain.1": wanted.encode(),
            "usr/share/man/de/man1/damaged.1.gz": b"no gzip",
            "usr/share/man/de/man1/cut.1.gz": gzip.compress(wanted.encode())[:20],
            "usr/share/man/de/man1/latin.1.gz": gzip.compress("größer".encode("latin-1")),
            "usr/share/man/de/man1/large.1.gz": b"\0" * (5 * 2**20),
        }
    )
    found = dict(manpages.pages(archive, "a package"))
    assert {page for page, source in found.items() if source == wanted} == {"man1/ja.1", "man7/auch.7", "man8/auch.8"}
    assert not set(found) & {"man1/damaged.1", "man1/latin.1", "man1/large.1", "man1/plain.1", "man1/nein.1"}


def test_links_are_not_followed() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        member = tarfile.TarInfo("./usr/share/man/de/man1/link.1.gz")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    assert list(manpages.pages(stream.getvalue(), "a package")) == []


def test_a_page_that_unpacks_to_anything_is_bounded() -> None:
    bomb = gzip.compress(b"a" * (40 * 2**20))
    ((_page, source),) = manpages.pages(package({"usr/share/man/de/man1/bomb.1.gz": bomb}), "a package")
    assert len(source) == 4 * 2**20


def test_what_was_not_translated_is_left_out() -> None:
    source = "Dies ist ein Absatz, der übersetzt ist.\n.PP\nWrite the name of each file to standard output.\n"
    german = list(manpages.passages_of("German", [("man1/a.1", source)]))
    assert german == [Passage("German", "man1/a.1", "Dies ist ein Absatz, der übersetzt ist.")]
    assert len(list(manpages.passages_of("English", [("man1/a.1", source)]))) == 2
