"""LogSettings: which log lines are written and how they look, changed while the server runs.

Each worker of `--workers` has settings of its own, and a call reaches one of them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.config import LogFormat, ServerConfig
from inferd_server.errors import InvalidRequest, NotBuilt
from inferd_server.frontend.services import Handler
from inferd_server.observability import log
from inferd_server.observability.log import LogSettings

_LOG = logging.getLogger(__name__)

_FILE = "log_file"
_FORMAT = "log_format"
_FIELDS = {
    "log_info": ("info", "bool_param"),
    "log_warning": ("warning", "bool_param"),
    "log_error": ("error", "bool_param"),
    "log_verbose_level": ("verbose_level", "uint32_param"),
    _FORMAT: ("format", "string_param"),
}
"""By their names in the protocol: our names, and where in a value they are."""


class LoggingExtension:
    """The RPC of the extension `logging`. Used on one thread alone."""

    names: Sequence[str] = ("logging",)

    def __init__(self, config: ServerConfig) -> None:
        self._settings = LogSettings.of(config.log_format, config.log_level)

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {"LogSettings": self.log_settings}

    def log_settings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Changes the settings that are named, all of them or none, and answers what holds afterwards.

        Raises InvalidRequest where one is unknown or of another kind, NotBuilt for `log_file`, which Triton does not
        change while it runs either.
        """
        changes = dict(_change(name, request.settings[name]) for name in sorted(request.settings))
        if changes:
            _LOG.info("log settings change: %s", ", ".join(f"{name}={value}" for name, value in changes.items()))
            self._settings = dataclasses.replace(self._settings, **changes)
            log.apply(self._settings)
        value = pb.LogSettingsResponse.SettingValue
        answer = {_FILE: value(string_param="")}
        for name, (field, kind) in _FIELDS.items():
            answer[name] = value(**{kind: getattr(self._settings, field)})
        return pb.LogSettingsResponse(settings=answer)


def _change(name: str, value: pb.LogSettingsRequest.SettingValue) -> tuple[str, Any]:
    """A field of the settings and what it is to be."""
    if name == _FILE:
        raise NotBuilt("log_file cannot be changed: the lines go to stderr, redirect it when you start the server")
    if name not in _FIELDS:
        raise InvalidRequest(f"log setting '{name}' is unknown: expected one of {', '.join(_FIELDS)}")
    field, kind = _FIELDS[name]
    given = value.WhichOneof("parameter_choice")
    if given != kind:
        raise InvalidRequest(f"log setting '{name}' is expected as {kind}, got {given or 'nothing'}")
    new = getattr(value, kind)
    if name != _FORMAT:
        return field, new
    # Triton's own formats, 'default' and 'ISO8601', look like neither.
    if new not in list(LogFormat):
        raise InvalidRequest(f"log setting 'log_format' is expected to be {' or '.join(LogFormat)}, got '{new}'")
    return field, LogFormat(new)
