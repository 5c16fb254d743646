"""Polling while folders come and go: what vanishes is met by the next look, and nothing ends the polling."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from inferd_server import app
from inferd_server.config import ServerConfig
from inferd_server.repository.scan import ModelDirectory
from support import models


@pytest.mark.parametrize("gone", [".", "2"])
def test_a_folder_that_goes_while_it_is_looked_at_is_made_of_nothing_that_was_there(tmp_path: Path, gone: str) -> None:
    models.write(tmp_path, "m", models.constant(1), version=2)
    directory = ModelDirectory("m", tmp_path / "m", (2,), None)
    before = directory.fingerprint(2)
    assert [mark[0] for mark in before] == ["2/model.onnx"]
    shutil.rmtree(directory.path / gone)
    assert directory.fingerprint(2) == ()


def test_a_folder_that_goes_between_two_looks_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.write(tmp_path, "m", models.constant(1), version=2)

    def vanish(self: Path, _: str) -> list[Path]:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "rglob", vanish)
    assert ModelDirectory("m", tmp_path / "m", (2,), None).fingerprint(2) == ()


def test_a_poll_that_fails_is_not_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        loop, done, polls = asyncio.get_running_loop(), asyncio.Event(), 0

        def poll() -> None:
            nonlocal polls
            polls += 1
            if polls == 1:
                raise OSError("stale file handle")
            loop.call_soon_threadsafe(done.set)

        config = ServerConfig(model_repository=tmp_path, repository_poll_secs=0.001)
        polling = asyncio.create_task(app._poll(config, SimpleNamespace(poll=poll)))  # type: ignore[arg-type]
        await asyncio.wait_for(done.wait(), 60)
        polling.cancel()

    asyncio.run(main())
    assert "the repository could not be polled, what serves goes on" in caplog.text
    assert "stale file handle" in caplog.text
