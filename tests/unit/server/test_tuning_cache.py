"""What tuning keeps, and what it does with files that it did not write so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inferd_server.runtime import fingerprint
from inferd_server.runtime.backend import GraphLevel, SessionSettings
from inferd_server.runtime.choosing import DISABLED_OPTIMIZERS, NCHWC, SPINNING, STOP_SPINNING
from inferd_server.runtime.options import default_cache
from inferd_server.runtime.tuning_cache import TuningCache

KEY = {"model": "ab", "cpus": 2}
DEFAULT = SessionSettings(intra_op_threads=2, entries={"session.disable_prepacking": "1"})
CHOSEN = SessionSettings(
    1,
    memory_arena=False,
    memory_pattern=False,
    graph_level=GraphLevel.EXTENDED,
    entries={"session.disable_prepacking": "1", DISABLED_OPTIMIZERS: NCHWC, SPINNING: "1", STOP_SPINNING: "1"},
)


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path / "new")
    assert cache.find(KEY, DEFAULT) is None
    cache.keep(KEY, CHOSEN)
    assert cache.find(KEY, DEFAULT) == CHOSEN
    assert cache.find({**KEY, "cpus": 4}, DEFAULT) is None
    assert [path.suffix for path in (tmp_path / "new" / "tuning").iterdir()] == [".json"]


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda _: b"\xff\x00",
        lambda _: b"[" * 50_000,
        lambda _: b" " * 100_000 + b"{}",
        lambda _: [],
        lambda _: None,
        lambda content: {**content, "format": 2},
        lambda content: {**content, "key": {}},
        lambda content: {**content, "intra_op_threads": -1},
        lambda content: {**content, "intra_op_threads": True},
        lambda content: {**content, "intra_op_threads": 10**9},
        lambda content: {**content, "memory_arena": 1},
        lambda content: {**content, "memory_pattern": None},
        lambda content: {**content, "graph_level": "most"},
        lambda content: {**content, "entries": {"session.load_model_format": "ORT"}},
        lambda content: {**content, "entries": {SPINNING: {}}},
        lambda content: {**content, "entries": []},
    ],
)
def test_a_damaged_file_is_a_warning_and_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Change
) -> None:
    cache = TuningCache(tmp_path)
    cache.keep(KEY, CHOSEN)
    changed = change(json.loads(cache.path(KEY).read_text()))
    cache.path(KEY).write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
    assert cache.find(KEY, DEFAULT) is None
    assert "is measured again" in caplog.text
    cache.keep(KEY, CHOSEN)
    assert cache.find(KEY, DEFAULT) == CHOSEN


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = TuningCache(tmp_path / "file")
    with cache.alone():
        cache.keep(KEY, CHOSEN)
    assert "the next start measures again" in caplog.text
    assert cache.find(KEY, DEFAULT) is None


def test_a_folder_where_the_result_should_be_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TuningCache(tmp_path)
    cache.path(KEY).mkdir(parents=True)
    assert cache.find(KEY, DEFAULT) is None
    cache.keep(KEY, CHOSEN)
    assert "the next start measures again" in caplog.text
    assert [path.name for path in (tmp_path / "tuning").iterdir()] == [cache.path(KEY).name]


def test_measurements_on_one_folder_take_turns(tmp_path: Path) -> None:
    cache, other = TuningCache(tmp_path), TuningCache(tmp_path)
    inside = threading.Event()

    def enter() -> None:
        with other.alone():
            inside.set()

    thread = threading.Thread(target=enter)
    with cache.alone():
        thread.start()
        assert not inside.wait(0.05)
    thread.join(10)
    assert inside.is_set()


def test_the_cache_lies_where_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_cache() == Path("/var/cache/inferd")
    monkeypatch.setenv("HOME", "/home/somebody")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache() == Path("/home/somebody/.cache/inferd")


def test_processors_are_told_apart_by_name_and_abilities(tmp_path: Path) -> None:
    names = []
    for number, text in enumerate(
        ["model name\t: A\nflags\t\t: x y\n", "model name\t: A\nflags\t\t: x\n", "Features: z\n"]
    ):
        (tmp_path / str(number)).write_text(text)
        names.append(fingerprint.cpu_model(tmp_path / str(number)))
    assert len(set(names)) == 3
    assert names[0].startswith("A ")
    assert fingerprint.cpu_model(tmp_path / "none")


def test_the_gpu_is_named_by_its_driver(tmp_path: Path) -> None:
    assert fingerprint.gpu_model(tmp_path / "none") == "gpu"
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t NVIDIA Test 9000\nIRQ:   1\n")
    assert fingerprint.gpu_model(tmp_path) == "NVIDIA Test 9000"
