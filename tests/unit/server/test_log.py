from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from inferd_server.config import LogFormat, LogLevel
from inferd_server.observability import log
from inferd_server.observability.log import LogSettings

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    root, server = logging.getLogger(), logging.getLogger("inferd_server")
    handlers, levels = list(root.handlers), (root.level, server.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    server.setLevel(levels[1])


def written(settings: LogSettings, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The levels of which lines come out, for a line of each."""
    log.apply(settings)
    for name, level in LEVELS.items():
        logging.getLogger("inferd_server.test").log(level, "%s", name)
    return [line.split()[-1] for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_a_level_writes_itself_and_what_matters_more(
    level: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(LogSettings.of(LogFormat.TEXT, LogLevel(level)), capsys) == list(LEVELS)[-count:]


@pytest.mark.parametrize("switches", range(16))
def test_each_kind_of_line_is_switched_by_itself(switches: int, capsys: pytest.CaptureFixture[str]) -> None:
    debug, info, warning, error = (bool(switches & 1 << place) for place in range(4))
    settings = LogSettings(LogFormat.TEXT, info=info, warning=warning, error=error, verbose_level=3 * debug)
    expected = [name for name, on in zip(LEVELS, (debug, info, warning, error), strict=True) if on]
    assert written(settings, capsys) == expected


def test_lines_of_libraries_are_switched_too(capsys: pytest.CaptureFixture[str]) -> None:
    settings = LogSettings.of(LogFormat.TEXT, LogLevel.DEBUG)
    log.apply(settings)
    logging.getLogger("some.library").warning("w")
    logging.getLogger("some.library").info("i")
    assert capsys.readouterr().err.endswith("WARNING w\n")
    log.apply(LogSettings.of(LogFormat.TEXT, LogLevel.ERROR))
    logging.getLogger("some.library").warning("w")
    assert capsys.readouterr().err == ""
