"""TraceSetting: the settings of traces, of which the server writes none yet.

The level stays OFF, and only a change that leaves it so is taken: the sampling settings are kept, for the server or for
one model, and answered; a level, file or mode that would write something is refused.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.errors import InvalidRequest, ModelNotFound, NotBuilt
from inferd_server.frontend.services import Handler
from inferd_server.repository.manager import RepositoryManager

_LEVEL = "trace_level"
_OFF = "OFF"
_LEVELS_NOT_BUILT = ("TIMESTAMPS", "TENSORS")
_DEFAULTS = {
    _LEVEL: _OFF,
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "opentelemetry",
}
_LEAST = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}
_MOST = 2**31 - 1


class TraceExtension:
    """The RPC of the extension `trace`. Used on one thread alone."""

    names: Sequence[str] = ("trace",)

    def __init__(self, repository: RepositoryManager) -> None:
        self._repository = repository
        self._server: dict[str, str] = {}
        self._models: dict[str, dict[str, str]] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {"TraceSetting": self.trace_setting}

    def trace_setting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """Changes the settings that are named, all of them or none, and answers what holds afterwards.

        A setting without a value is cleared: a model's is the server's again, the server's the default.
        Raises ModelNotFound, InvalidRequest where a setting is unknown or no such value, NotBuilt where it asks for
        traces.
        """
        model = request.model_name
        if model and model not in self._repository.models:
            raise ModelNotFound(f"model '{model}' is not known: expected one of {sorted(self._repository.models)}")
        changes = {name: _value(name, request.settings[name].value) for name in sorted(request.settings)}
        own = dict(self._models.get(model, {}) if model else self._server)
        for name, value in changes.items():
            if value is None:
                own.pop(name, None)
            else:
                own[name] = value
        if not model:
            self._server = own
        elif changes:
            self._models[model] = own
        settings = ChainMap(own, self._server, _DEFAULTS)
        answer = pb.TraceSettingResponse.SettingValue
        return pb.TraceSettingResponse(settings={name: answer(value=[settings[name]]) for name in _DEFAULTS})


def _value(name: str, values: Sequence[str]) -> str | None:
    """What a setting is to be, None where it is to be cleared."""
    if name not in _DEFAULTS:
        raise InvalidRequest(f"trace setting '{name}' is unknown: expected one of {', '.join(_DEFAULTS)}")
    if not values:
        return None
    if len(values) > 1 and name != _LEVEL:
        raise InvalidRequest(f"trace setting '{name}' is expected to have one value, got {len(values)}")
    if name in _LEAST:
        return _number(name, values[0])
    unknown = [value for value in values if value not in (_OFF, *_LEVELS_NOT_BUILT)]
    if name == _LEVEL and unknown:
        raise InvalidRequest(f"trace_level '{unknown[0]}' is unknown: expected {_OFF}, the only one this server has")
    if any(value != _DEFAULTS[name] for value in values):
        raise NotBuilt(
            f"{name} {', '.join(values)} asks for traces, which this server does not have: expected '{_DEFAULTS[name]}'"
        )
    return _DEFAULTS[name]


def _number(name: str, value: str) -> str:
    try:
        number = int(value)
    except ValueError:
        number = None
    if number is None or not _LEAST[name] <= number <= _MOST:
        raise InvalidRequest(
            f"trace setting '{name}' is expected to be a whole number from {_LEAST[name]} to {_MOST}, got '{value}'"
        )
    return str(number)
