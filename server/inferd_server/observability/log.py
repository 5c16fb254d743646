"""Log lines on stderr: text for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import dataclass

from inferd_server.config import LogFormat, LogLevel

_FIELDS = "inferd_fields"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """Which lines are written, and how they look. Each kind of line is switched by itself."""

    format: LogFormat
    info: bool
    warning: bool
    error: bool
    verbose_level: int
    """0 writes no debug lines, any other all of them."""

    @classmethod
    def of(cls, log_format: LogFormat, level: LogLevel) -> LogSettings:
        """Lines of a level and of those that matter more."""
        least = logging.getLevelNamesMapping()[level.upper()]
        return cls(
            format=log_format,
            info=least <= logging.INFO,
            warning=least <= logging.WARNING,
            error=least <= logging.ERROR,
            verbose_level=int(least <= logging.DEBUG),
        )

    def written(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if record.levelno >= logging.ERROR:
            return self.error
        if record.levelno >= logging.WARNING:
            return self.warning
        return self.info if record.levelno >= logging.INFO else self.verbose_level > 0

    @property
    def least(self) -> int:
        """The level of the least important lines that may be written: those below cost next to nothing."""
        if self.verbose_level:
            return logging.DEBUG
        return logging.INFO if self.info else logging.WARNING


def configure(log_format: LogFormat, level: LogLevel) -> None:
    """Sends the server's log lines to stderr. Called once, by the process that owns them."""
    apply(LogSettings.of(log_format, level))


def apply(settings: LogSettings) -> None:
    """Writes what the settings say from here on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if settings.format is LogFormat.JSON else _TextFormatter())
    handler.addFilter(settings.written)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("inferd_server").setLevel(settings.least)


def event(logger: logging.Logger, name: str, message: str, **fields: object) -> None:
    """A line that programs read: `name` and `fields` are keys of the JSON line, `message` is for people."""
    logger.info(message, extra={_FIELDS: {"event": name, **fields}})


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
