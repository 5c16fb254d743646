"""Loads one version: read, check, warm, and only then hand it out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from inferd_protocol.artefact import MODEL_FILE

from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.repository import model_config
from inferd_server.repository.config import warm_up as declared_warm_up
from inferd_server.repository.config.steps import PLATFORM as ENSEMBLE
from inferd_server.repository.ensemble import declared_signature
from inferd_server.repository.ensemble_steps import EnsembleSteps
from inferd_server.repository.golden import check_golden
from inferd_server.repository.model_config import DeclaredConfig
from inferd_server.repository.response_cache import ResponseCache
from inferd_server.repository.servable import Servable, read_labels
from inferd_server.repository.table import ModelTable
from inferd_server.repository.warm_up import prepare_samples, rows_are_independent, warm_up
from inferd_server.runtime.backend import Backend, SessionSettings
from inferd_server.runtime.resources import available_cpus
from inferd_server.scheduling import sequence_batcher
from inferd_server.scheduling.dynamic_batcher import DynamicBatcher
from inferd_server.scheduling.observer import Observe
from inferd_server.scheduling.pipeline import Pipeline
from inferd_server.scheduling.request_queue import RequestQueue
from inferd_server.scheduling.sequence_batcher import SequenceBatcher

_LOG = logging.getLogger(__name__)


def load(
    name: str,
    version: int,
    folder: Path,
    declared: DeclaredConfig,
    *,
    models: ModelTable,
    backend: Backend,
    server: ServerConfig,
    responses: ResponseCache,
    observe: Observe | None = None,
) -> Servable:
    """Loads the model file in `folder` as version `version` of model `name`, warm and ready to be called.

    An ensemble has no file: its steps run what is in `models`.
    Raises LoadError where it is missing, cannot be run, contradicts what its config.pbtxt declares, or does not answer
    its golden samples as it should.
    """
    if declared.steps:
        return _load_ensemble(name, version, declared, models, server, observe)
    file = declared.model_filename or MODEL_FILE
    path = folder / file
    if not path.is_file():
        raise LoadError(f"version {version} has no {file}: expected {name}/{version}/{file}")
    model = backend.load(path, _session(declared, server))
    try:
        model_config.check_provider(declared, model.provider)
        own = model.signature
        model = model_config.shape(model, declared)
        # Where no batch axis is declared, none is looked for.
        batchable = declared.max_batch_size != 0 and model_config.has_batch_axis(own) and rows_are_independent(model)
        config = model_config.resolve(own, batchable, declared, server)
        sequences = model_config.sequence_model(model.signature, declared, config, server.max_sequences)
        labels = read_labels(model.signature, declared)
        model.prepare(prepare_samples(model.signature, config.max_batch_size))
        warm_up(model, config.max_batch_size)
        declared_warm_up.run(model, declared, config.max_batch_size)
        runs = check_golden(model, folder, config.max_batch_size)
    except BaseException:
        model.close()
        raise
    if runs:
        _LOG.info(
            "model '%s' version %d gives its golden answers in %d runs on %s", name, version, runs, model.provider
        )
    batcher = DynamicBatcher(
        model,
        name=f"{name}/{version}",
        max_batch_size=config.max_batch_size,
        instances=config.instances,
        max_queue_delay_ns=config.max_queue_delay_microseconds * 1000,
        preferred_rows=config.preferred_rows,
        queue=RequestQueue(config.max_queue_size, config.max_queue_bytes),
        observer=observe(name, version) if observe else None,
        on_gone=sequence_batcher.gone if sequences else None,
    )
    cache = responses.open(name, version) if declared.response_cache else None
    front = SequenceBatcher(batcher, sequences, model=name) if sequences else None
    return Servable(
        name, version, backend.platform, config, labels, model, batcher, declared, cache, front, tuned=model.tuned
    )


def _load_ensemble(
    name: str,
    version: int,
    declared: DeclaredConfig,
    models: ModelTable,
    server: ServerConfig,
    observe: Observe | None,
) -> Servable:
    steps = EnsembleSteps(name, declared_signature(declared), declared.steps, models)
    config = model_config.resolve_ensemble(declared, server)
    labels = {**steps.labels, **read_labels(steps.signature, declared)}
    pipeline = Pipeline(steps.graph, steps.bind, observer=observe(name, version) if observe else None)
    return Servable(name, version, ENSEMBLE, config, labels, steps, pipeline, declared, steps=steps)


def _session(declared: DeclaredConfig, server: ServerConfig) -> SessionSettings:
    """The declared settings; the CPUs are shared among instances of the model's own number, where it has one."""
    rows = server.max_batch_size if declared.max_batch_size is None else declared.max_batch_size
    session = replace(declared.session, most_rows=rows)
    if session.intra_op_threads or not declared.instances or server.intra_op_threads:
        return session
    return replace(session, intra_op_threads=max(1, available_cpus() // (declared.instances * server.workers)))
