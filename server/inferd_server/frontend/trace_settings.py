"""TraceSetting: which requests are traced, for the server or for one model, changed while it runs.

Traces go to the collector that the server was started with; without one, what would make traces is refused. There is
one kind, OpenTelemetry's timestamps: a level, file or mode that would write something else is refused.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from inferd_protocol import grpc_service_pb2 as pb

from inferd_server.config import ServerConfig
from inferd_server.errors import InvalidRequest, ModelNotFound, NotBuilt
from inferd_server.frontend.sampling import Sampling
from inferd_server.frontend.services import Handler
from inferd_server.repository.manager import RepositoryManager

_LEVEL = "trace_level"
_OFF = "OFF"
_ON = "TIMESTAMPS"
_TENSORS = "TENSORS"
_LEAST = {"trace_rate": 0, "trace_count": -1, "log_frequency": 0}
_MOST = 2**31 - 1

Sample: TypeAlias = Callable[[Sampling, Mapping[str, Sampling]], None]
"""Takes what holds from now on, of the server and of the models that have settings of their own."""


class TraceExtension:
    """The RPC of the extension `trace`. Used on one thread alone. `sample` is None where there is no collector."""

    names: Sequence[str] = ("trace",)

    def __init__(self, config: ServerConfig, repository: RepositoryManager, sample: Sample | None = None) -> None:
        self._repository = repository
        self._sample = sample
        self._defaults = {
            _LEVEL: _ON if sample else _OFF,
            "trace_rate": str(config.trace_rate),
            "trace_count": "-1",
            "log_frequency": "0",
            "trace_file": "",
            "trace_mode": "opentelemetry",
        }
        self._server: dict[str, str] = {}
        self._models: dict[str, dict[str, str]] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """By RPC name."""
        return {"TraceSetting": self.trace_setting}

    def trace_setting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """Changes the settings that are named, all of them or none, and answers what holds afterwards.

        A setting without a value is cleared: a model's is the server's again, the server's the default.
        Raises ModelNotFound, InvalidRequest where a setting is unknown or no such value, NotBuilt where it asks for
        traces that cannot be had.
        """
        model = request.model_name
        if model and model not in self._repository.models:
            raise ModelNotFound(f"model '{model}' is not known: expected one of {sorted(self._repository.models)}")
        changes = {name: self._value(name, request.settings[name].value) for name in sorted(request.settings)}
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
        if changes and self._sample:
            models = {name: self._sampling(settings) for name, settings in self._models.items() if settings}
            self._sample(self._sampling({}), models)
        settings = ChainMap(own, self._server, self._defaults)
        answer = pb.TraceSettingResponse.SettingValue
        return pb.TraceSettingResponse(settings={name: answer(value=[settings[name]]) for name in self._defaults})

    def _sampling(self, own: Mapping[str, str]) -> Sampling:
        settings = ChainMap(dict(own), self._server, self._defaults)
        return Sampling(settings[_LEVEL] == _ON, int(settings["trace_rate"]), int(settings["trace_count"]))

    def _value(self, name: str, values: Sequence[str]) -> str | None:
        """What a setting is to be, None where it is to be cleared."""
        if name not in self._defaults:
            raise InvalidRequest(f"trace setting '{name}' is unknown: expected one of {', '.join(self._defaults)}")
        if not values:
            return None
        if name == _LEVEL:
            return self._level(values)
        if len(values) > 1:
            raise InvalidRequest(f"trace setting '{name}' is expected to have one value, got {len(values)}")
        if name in _LEAST:
            return _number(name, values[0])
        if values[0] != self._defaults[name]:
            raise NotBuilt(
                f"{name} '{values[0]}' asks for traces of a kind that this server does not have: "
                f"expected '{self._defaults[name]}'"
            )
        return values[0]

    def _level(self, values: Sequence[str]) -> str:
        unknown = [value for value in values if value not in (_OFF, _ON, _TENSORS)]
        if unknown:
            raise InvalidRequest(f"trace_level '{unknown[0]}' is unknown: expected {_OFF} or {_ON}")
        if _TENSORS in values:
            raise NotBuilt(f"trace_level {_TENSORS} would put payloads into traces: expected {_OFF} or {_ON}")
        if _ON not in values:
            return _OFF
        if not self._sample:
            raise NotBuilt(f"trace_level {_ON} needs a collector: start the server with --trace-endpoint")
        return _ON


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
