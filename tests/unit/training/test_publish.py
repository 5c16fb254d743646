"""Publishing: whole or not at all, whoever else publishes at the same time."""

import errno
import json
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from inferd_training.errors import PublishError
from inferd_training.files import sha256
from inferd_training.publish import publish


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """As far as publishing is concerned, an export: a file, and a report that vouches for it."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"weights" * 1000)
    report = {"verified": True, "model": {"sha256": sha256(folder / "model.onnx")}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def listing(repository: Path) -> list[str]:
    """Everything under the repository, hidden entries too."""
    return sorted(str(path.relative_to(repository)) for path in repository.rglob("*"))


def test_versions_count_up(export: Path, repository: Path) -> None:
    assert publish(export, repository, "digits") == repository / "digits" / "1"
    assert listing(repository) == ["digits", "digits/1", "digits/1/model.onnx", "digits/1/report.json"]
    assert publish(export, repository, "digits", 7) == repository / "digits" / "7"
    (repository / "digits" / "notes").mkdir()
    assert publish(export, repository, "digits") == repository / "digits" / "8"
    assert (repository / "digits" / "8" / "model.onnx").read_bytes() == (export / "model.onnx").read_bytes()


def test_others_may_read_what_is_published(export: Path, repository: Path) -> None:
    published = publish(export, repository, "digits")
    mask = os.umask(0)
    os.umask(mask)
    for folder in (published.parent, published):
        assert folder.stat().st_mode & 0o777 == 0o777 & ~mask


def test_an_existing_version_is_refused_and_unchanged(export: Path, repository: Path) -> None:
    published = publish(export, repository, "digits", 3)
    before = (published / "model.onnx").stat()
    with pytest.raises(PublishError, match="version 3 of digits exists"):
        publish(export, repository, "digits", 3)
    assert (published / "model.onnx").stat() == before
    assert listing(repository) == ["digits", "digits/3", "digits/3/model.onnx", "digits/3/report.json"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../escape", "a\\b", "a\0b", "a\n", " a", "-x", "é"])
def test_bad_names_are_refused(name: str, export: Path, repository: Path) -> None:
    with pytest.raises(PublishError, match="is not a model name"):
        publish(export, repository, name)
    assert not repository.exists()


@pytest.mark.parametrize("version", [0, -1])
def test_bad_versions_are_refused(version: int, export: Path, repository: Path) -> None:
    with pytest.raises(PublishError, match=f"the version {version} was asked for"):
        publish(export, repository, "digits", version)


def test_a_name_taken_by_a_file_is_refused(export: Path, repository: Path) -> None:
    repository.mkdir()
    (repository / "digits").write_text("")
    with pytest.raises(PublishError, match="digits is a file, where a folder was expected"):
        publish(export, repository, "digits")


@pytest.mark.parametrize("missing", ["model.onnx", "report.json"])
def test_an_incomplete_export_is_refused(missing: str, export: Path, repository: Path) -> None:
    (export / missing).unlink()
    with pytest.raises(PublishError, match=f"lacks {missing}"):
        publish(export, repository, "digits")
    assert not repository.exists()


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("{}", "is not a report"),
        ("not JSON", "is not a report"),
        ("[]", "is not a report"),
        ('{"verified": false, "model": {"sha256": "00"}}', "does not say that model.onnx was verified"),
        ('{"verified": true, "model": {"sha256": "00"}}', "is not the file that was verified"),
    ],
)
def test_an_unverified_model_is_refused(report: str, message: str, export: Path, repository: Path) -> None:
    (export / "report.json").write_text(report)
    with pytest.raises(PublishError, match=message):
        publish(export, repository, "digits")
    assert listing(repository) == []


def test_a_model_changed_after_its_report_is_refused(export: Path, repository: Path) -> None:
    with (export / "model.onnx").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(PublishError, match="is not the file that was verified"):
        publish(export, repository, "digits")
    assert listing(repository) == []


@pytest.fixture
def with_golden(export: Path) -> Path:
    (export / "golden.npz").write_bytes(b"samples")
    report = json.loads((export / "report.json").read_text())
    report["golden"] = {"sha256": sha256(export / "golden.npz")}
    (export / "report.json").write_text(json.dumps(report))
    return export


def test_golden_samples_are_published_with_their_model(with_golden: Path, repository: Path) -> None:
    published = publish(with_golden, repository, "digits")
    assert sorted(path.name for path in published.iterdir()) == ["golden.npz", "model.onnx", "report.json"]
    assert (published / "golden.npz").read_bytes() == b"samples"


def test_golden_samples_that_the_report_does_not_vouch_for_are_refused(with_golden: Path, repository: Path) -> None:
    (with_golden / "golden.npz").write_bytes(b"others")
    with pytest.raises(PublishError, match=r"golden\.npz is not the file that was verified"):
        publish(with_golden, repository, "digits")
    (with_golden / "golden.npz").unlink()
    with pytest.raises(PublishError, match=r"golden\.npz is missing, which the report names"):
        publish(with_golden, repository, "digits")
    report = {"verified": True, "model": {"sha256": sha256(with_golden / "model.onnx")}}
    (with_golden / "report.json").write_text(json.dumps(report))
    (with_golden / "golden.npz").write_bytes(b"whose?")
    with pytest.raises(PublishError, match=r"golden\.npz is not named by the report"):
        publish(with_golden, repository, "digits")
    (with_golden / "report.json").write_text(json.dumps({**report, "golden": []}))
    with pytest.raises(PublishError, match="is not a report of an export"):
        publish(with_golden, repository, "digits")
    assert listing(repository) == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_publish_leaves_nothing(
    interruption: BaseException, first: bool, export: Path, repository: Path
) -> None:
    if not first:
        publish(export, repository, "digits")
    repository.mkdir(exist_ok=True)
    before = listing(repository)

    def rename(source: Path, _target: Path) -> None:
        # All is written, and nothing of it is to be seen by a server that scans the repository.
        assert (source / "model.onnx").exists() or (source / "1" / "model.onnx").exists()
        visible = [path for path in listing(repository) if not any(part.startswith(".") for part in Path(path).parts)]
        assert visible == before
        raise interruption

    with pytest.raises((KeyboardInterrupt, PublishError)):
        publish(export, repository, "digits", rename=rename)
    assert listing(repository) == before


@pytest.mark.parametrize("existing", [0, 2])
def test_losing_the_race_takes_the_next_version(existing: int, export: Path, repository: Path) -> None:
    for _ in range(existing):
        publish(export, repository, "digits")
    beaten = []

    def rename(source: Path, target: Path) -> None:
        if not beaten:
            beaten.append(publish(export, repository, "digits"))
        source.rename(target)

    published = publish(export, repository, "digits", rename=rename)
    assert beaten == [repository / "digits" / str(existing + 1)]
    assert published == repository / "digits" / str(existing + 2)


@pytest.mark.parametrize("existing", [0, 2])
def test_losing_the_race_for_a_chosen_version_is_refused(existing: int, export: Path, repository: Path) -> None:
    for _ in range(existing):
        publish(export, repository, "digits")

    def rename(source: Path, target: Path) -> None:
        publish(export, repository, "digits", 5)
        source.rename(target)

    with pytest.raises(PublishError, match="version 5 of digits exists"):
        publish(export, repository, "digits", 5, rename=rename)


def test_a_chosen_version_survives_a_race_for_the_models_folder(export: Path, repository: Path) -> None:
    beaten = []

    def rename(source: Path, target: Path) -> None:
        if not beaten:
            beaten.append(publish(export, repository, "digits"))
        source.rename(target)

    # Another version came first and brought the folder; version 5 is still free.
    assert publish(export, repository, "digits", 5, rename=rename) == repository / "digits" / "5"


def test_threads_never_clobber_each_other(export: Path, repository: Path) -> None:
    together = threading.Barrier(8)

    def one(_index: int) -> Path:
        together.wait(timeout=30)
        return publish(export, repository, "digits")

    with ThreadPoolExecutor(8) as pool:
        published = list(pool.map(one, range(8)))
    assert sorted(int(path.name) for path in published) == list(range(1, 9))
    assert len(listing(repository)) == 1 + 8 * 3


def test_processes_never_clobber_each_other(export: Path, repository: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        waiting = [pool.submit(publish, export, repository, "digits") for _ in range(16)]
        published = [future.result() for future in waiting]
    assert sorted(int(path.name) for path in published) == list(range(1, 17))
    assert len(listing(repository)) == 1 + 16 * 3
