from __future__ import annotations

import pytest
from inferd_server.errors import InvalidRequest, ModelNotFound
from inferd_server.repository.changes import Changes, changes
from inferd_server.repository.lifecycle import ModelEntry, State, VersionEntry
from inferd_server.repository.override import Override
from inferd_server.repository.scan import Fingerprint
from inferd_server.repository.table import ModelTable

OLD: Fingerprint = (("1/model.onnx", 10, 1, 1),)
NEW: Fingerprint = (("1/model.onnx", 10, 2, 1),)
READY = VersionEntry(State.READY, fingerprint=OLD)
FAILED = VersionEntry(State.UNAVAILABLE, "it is torn", fingerprint=OLD)


def test_what_is_new_is_loaded_and_what_is_not_wanted_retired() -> None:
    assert changes({1: READY}, {2: NEW}, retry=False) == Changes(load=(2,), retire=(1,))


def test_what_is_unchanged_is_left_alone() -> None:
    assert changes({1: READY, 2: FAILED}, {1: OLD, 2: OLD}, retry=False) == Changes((), ())


def test_what_has_changed_is_loaded_again() -> None:
    assert changes({1: READY, 2: FAILED}, {1: NEW, 2: NEW}, retry=False) == Changes((1, 2), ())


def test_who_asks_gets_another_try_of_what_failed_and_of_what_was_not_taken() -> None:
    kept = VersionEntry(State.READY, "its files have changed, and were not taken", fingerprint=OLD)
    assert changes({1: READY, 2: FAILED, 3: kept}, {1: OLD, 2: OLD, 3: OLD}, retry=True) == Changes((2, 3), ())


def test_an_override_loads_everything() -> None:
    assert changes({1: READY}, {1: OLD}, retry=True, reload=True) == Changes((1,), ())


def test_the_table_is_written_whole_or_not_at_all() -> None:
    table = ModelTable()
    assert table.update("m", lambda _: ModelEntry(failure="one")) == ModelEntry()
    before, generation = table.models, table.generation

    def refuse(_: ModelEntry) -> ModelEntry:
        raise ModelNotFound("no")

    with pytest.raises(ModelNotFound):
        table.update("m", refuse)
    assert (table.models, table.generation) == (before, generation)
    assert table.update("m", lambda _: None).failure == "one"
    assert "m" in before, "who holds the table of before sees it whole"
    assert "m" not in table.models


@pytest.mark.parametrize("path", ["", "1", "x/y", "0/y", "1/../y", "../1/y", "/1/y", "1/a\0b"])
def test_files_of_an_override_stay_within_a_version(path: str) -> None:
    with pytest.raises(InvalidRequest, match="expected to name <version>/<file>"):
        Override("{}", {path: b""})


def test_files_of_an_override_may_lie_in_folders() -> None:
    assert Override("{}", {"3/weights/a.bin": b"x"}).files
