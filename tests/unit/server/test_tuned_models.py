"""Tuning of real models: what is measured, kept, found again, and never taken."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inferd_protocol.datatypes import BY_NAME
from inferd_protocol.tensors import Tensor, bf16_bits
from inferd_server.config import Device, ServerConfig, Tune
from inferd_server.errors import LoadError, RuntimeFailure
from inferd_server.repository import loader, model_config
from inferd_server.repository.config.declared import DeclaredConfig
from inferd_server.repository.response_cache import ResponseCache
from inferd_server.repository.servable import Servable
from inferd_server.repository.table import ModelTable
from inferd_server.repository.warm_up import prepare_samples
from inferd_server.runtime import options
from inferd_server.runtime.backend import SessionSettings, Signature, TensorSpec
from inferd_server.runtime.duels import Duels, same_answer
from inferd_server.runtime.onnxruntime_backend import OnnxRuntimeBackend
from inferd_server.runtime.options import RuntimeOptions, TuneOptions
from inferd_server.runtime.tuner import Tuner
from inferd_server.runtime.tuning_cache import TuningCache
from support import models

SECONDS = 60.0
"""Never over: small models have made all their rounds long before."""


def backend(tmp_path: Path, seconds: float = SECONDS, threads: int = 2) -> OnnxRuntimeBackend:
    asked = RuntimeOptions(tune=TuneOptions(on=True, seconds=seconds), cache=tmp_path / "cache")
    return OnnxRuntimeBackend(Device.CPU, threads, asked)


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "tuning").glob("*.json"))


def test_a_tuned_model_answers_as_before_and_the_next_load_measures_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = models.write(tmp_path, "m", models.classifier())
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    model = backend(tmp_path).load(path)
    assert model.tuned == ""
    model.prepare(prepare_samples(model.signature, 8))
    assert model.tuned
    assert "m/1/model.onnx runs with session options measured: " in caplog.text
    np.testing.assert_allclose(model.run([images])[0], models.classify(images), rtol=1e-5)
    (file,) = kept(tmp_path)
    written = file.read_bytes()
    model.close()
    with pytest.raises(RuntimeFailure, match="unloaded"):
        model.run([images])

    again = backend(tmp_path).load(path)
    assert again.tuned == model.tuned
    again.prepare(prepare_samples(again.signature, 8))
    assert "session options found earlier: " in caplog.text
    assert [file.read_bytes() for file in kept(tmp_path)] == [written]
    np.testing.assert_allclose(again.run([images])[0], models.classify(images), rtol=1e-5)
    again.close()


def test_what_was_kept_is_what_runs(tmp_path: Path) -> None:
    path = models.write(tmp_path, "m", models.classifier())
    model = backend(tmp_path).load(path)
    model.prepare(prepare_samples(model.signature, 8))
    (file,) = kept(tmp_path)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "memory_pattern": False, "memory_arena": True, "intra_op_threads": 1,
                                "graph_level": "all", "entries": {}}))  # fmt: skip
    found = backend(tmp_path).load(path)
    assert found.tuned == "intra_op_thread_count=1 enable_mem_pattern=0"


@pytest.mark.parametrize(
    "other",
    [
        lambda settings: replace(settings, memory_arena=False),
        lambda settings: replace(settings, explicit=frozenset({"memory_arena"})),
        lambda settings: replace(settings, intra_op_threads=1),
        lambda settings: replace(settings, most_rows=9),
        lambda settings: replace(settings, entries={"session.disable_prepacking": "1"}),
    ],
)
def test_other_settings_are_measured_on_their_own(tmp_path: Path, other: object) -> None:
    path = models.write(tmp_path, "m", models.classifier())
    settings = SessionSettings(most_rows=8)
    for each in (settings, other(settings)):  # type: ignore[operator]
        model = backend(tmp_path).load(path, each)
        model.prepare(prepare_samples(model.signature, 8))
        model.close()
    assert len(kept(tmp_path)) == 2


def test_a_model_that_changes_is_measured_again(tmp_path: Path) -> None:
    for version, value in ((1, 1.0), (2, 2.0)):
        path = models.write(tmp_path, "m", models.constant(value), version)
        model = backend(tmp_path).load(path)
        model.prepare(prepare_samples(model.signature, 8))
        model.close()
    assert len(kept(tmp_path)) == 2


def test_too_little_time_is_said_and_nothing_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = backend(tmp_path, seconds=1e-9).load(models.write(tmp_path, "m", models.classifier()))
    model.prepare(prepare_samples(model.signature, 8))
    assert "tuning was not done with all options: --tune-secs 1e-09 is short" in caplog.text
    assert model.tuned == "default"
    assert kept(tmp_path) == []


def test_a_model_that_takes_no_made_up_inputs_is_served_untuned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = backend(tmp_path).load(models.write(tmp_path, "m", models.embedding(vocabulary=1)))
    model.prepare([[np.full((1, 3), 7, np.int64)]])
    assert "is not tuned: it does not run on made-up inputs" in caplog.text
    assert model.run([np.zeros((1, 3), np.int64)])[0].shape == (1, 3, 2)
    assert kept(tmp_path) == []


def test_a_file_that_is_no_model_fails_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"junk")
    with pytest.raises(LoadError, match="is no model that ONNX Runtime"):
        backend(tmp_path).load(path)


def load(tmp_path: Path, config: str = "", **flags: object) -> Servable:
    """A servable, and its configuration, of a server with `--tune on`."""
    models.write(tmp_path / "repository", "m", models.sum_and_difference())
    (tmp_path / "repository" / "m" / "config.pbtxt").write_text(config)
    server = ServerConfig(
        model_repository=tmp_path / "repository",
        device=Device.CPU,
        tune=Tune.ON,
        tune_secs=SECONDS,
        cache_dir=tmp_path / "cache",
        **flags,  # type: ignore[arg-type]
    )
    runtime = OnnxRuntimeBackend(Device.CPU, server.intra_op_threads or 2, options.from_config(server))
    declared = model_config.read(tmp_path / "repository" / "m" / "config.pbtxt", "m", runtime.platform)
    folder = tmp_path / "repository" / "m" / "1"
    return loader.load(
        "m", 1, folder, declared, models=ModelTable(), backend=runtime, server=server, responses=ResponseCache(0)
    )


def parameters(servable: Servable, declared: DeclaredConfig | None = None) -> dict[str, str]:
    answer = model_config.configuration(
        "m",
        servable.platform,
        servable.model.provider,
        servable.signature,
        declared or servable.declared,
        servable.config,
        servable.tuned,
    )
    return {key: value.string_value for key, value in answer.parameters.items()}


def test_a_configuration_says_what_was_chosen(tmp_path: Path) -> None:
    servable = load(tmp_path)
    assert parameters(servable) == {"provider": "CPUExecutionProvider", "tuned": servable.tuned}
    assert servable.tuned
    servable.close(1)


def test_a_config_goes_before_tuning_and_so_do_flags(tmp_path: Path) -> None:
    def parameter(key: str) -> str:
        return f'parameters {{ key: "{key}" value {{ string_value: "1" }} }}\n'

    keys = ("intra_op_thread_count", "enable_mem_arena", "enable_mem_pattern", "session.intra_op.allow_spinning")
    servable = load(tmp_path, "optimization { graph { level: 1 } }\n" + "".join(map(parameter, keys)))
    # Nothing is left to choose, so nothing was.
    assert servable.tuned == "default"
    servable.close(1)
    servable = load(tmp_path, intra_op_threads=2)
    assert "intra_op_thread_count" not in servable.tuned
    servable.close(1)


def test_what_another_server_chose_is_not_repeated(tmp_path: Path) -> None:
    servable = load(tmp_path, 'parameters { key: "tuned" value { string_value: "by somebody else" } }')
    assert parameters(servable)["tuned"] == servable.tuned != "by somebody else"
    untuned = replace(servable, tuned="")
    assert "tuned" not in parameters(untuned)
    servable.close(1)


SPEC = TensorSpec("y", BY_NAME["FP32"], ("batch", 1))


class Stub:
    """A session that answers `value`."""

    signature = Signature((SPEC,), (SPEC,), {})

    def __init__(self, value: float, loaded: list[Stub]) -> None:
        self.closed = False
        self._value = value
        loaded.append(self)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [np.full((1, 1), self._value, np.float32)]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("are_set", [True, False])
def test_threads_that_a_flag_sets_are_never_tried(tmp_path: Path, are_set: bool) -> None:
    seen: set[int] = set()

    def record(settings: SessionSettings) -> Stub:
        seen.add(settings.intra_op_threads)
        return Stub(1.0, [])

    tuner = Tuner(TuneOptions(on=True, seconds=SECONDS, threads_are_set=are_set), TuningCache(tmp_path))
    chosen = tuner.measure({"model": "m"}, SessionSettings(2), [[]], record)
    assert seen == ({2} if are_set else {1, 2})
    assert chosen.explicit == frozenset()


@pytest.mark.parametrize(("value", "taken"), [(1.0, True), (1.00001, True), (1.01, False), (float("nan"), False)])
def test_settings_that_answer_otherwise_are_never_taken(value: float, taken: bool) -> None:
    loaded: list[Stub] = []
    duels = Duels(lambda settings: Stub(1.0 if settings.memory_arena else value, loaded), [[]], 60)
    costs = duels(SessionSettings(), SessionSettings(memory_arena=False))
    assert (costs is not None) is taken
    duels.close()
    assert [session.closed for session in loaded] == [True, True]


def test_two_sessions_at_once_are_all_that_is_held() -> None:
    loaded: list[Stub] = []
    duels = Duels(lambda _: Stub(1.0, loaded), [[]], 60)
    for threads in range(2, 6):
        duels(SessionSettings(), SessionSettings(threads))
    assert [session.closed for session in loaded].count(False) == 2
    duels.close()
    assert all(session.closed for session in loaded)


def test_runs_are_interleaved_and_medians_are_told() -> None:
    """A clock that each reading moves on by 1, and one session that takes 10 more."""
    now = [0]

    class Slow(Stub):
        def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
            now[0] += 10
            return super().run(inputs)

    def clock() -> int:
        now[0] += 1
        return now[0]

    loaded: list[Stub] = []
    duels = Duels(
        lambda settings: (Stub if settings.memory_arena else Slow)(1.0, loaded), [[], []], 60, clock, lambda: 0
    )
    costs = duels(SessionSettings(), SessionSettings(memory_arena=False))
    assert costs is not None
    assert [(one.wall_ns, other.wall_ns) for one, other in costs] == [(1, 11), (1, 11)]


@pytest.mark.parametrize(
    ("datatype", "one", "other", "same"),
    [
        ("INT64", [1], [1], True),
        ("INT64", [1], [2], False),
        ("FP32", [1.0], [1.00001], True),
        ("FP32", [1.0], [1.001], False),
        ("FP16", [1.0], [1.001], True),
        ("FP64", [1.0], [1.0001], False),
        ("FP32", [float("nan")], [float("nan")], True),
        ("FP32", [1.0], [1.0, 1.0], False),
        ("BYTES", [b"a"], [b"a"], True),
        ("BYTES", [b"a"], [b"b"], False),
    ],
)
def test_answers_are_the_same_within_roundings(
    datatype: str, one: list[object], other: list[object], same: bool
) -> None:
    kind = BY_NAME[datatype]
    assert same_answer(kind, np.array(one, kind.numpy), np.array(other, kind.numpy)) is same


def test_bf16_is_compared_as_numbers() -> None:
    kind = BY_NAME["BF16"]
    one, close, other = (bf16_bits(np.array([value], np.float32)) for value in (1.0, 1.0078125, 1.1))
    assert same_answer(kind, one, close)
    assert not same_answer(kind, one, other)
