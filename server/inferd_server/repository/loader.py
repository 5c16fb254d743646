"""Loads one version: read, check, warm, and only then hand it out."""

from __future__ import annotations

from pathlib import Path

from inferd_protocol.artefact import MODEL_FILE

from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.repository import ensemble_config, model_config
from inferd_server.repository.ensemble import declared_signature
from inferd_server.repository.ensemble_steps import EnsembleSteps
from inferd_server.repository.model_config import DeclaredConfig
from inferd_server.repository.servable import Servable, read_labels
from inferd_server.repository.table import ModelTable
from inferd_server.repository.warm_up import rows_are_independent, warm_up
from inferd_server.runtime.backend import Backend
from inferd_server.scheduling.dynamic_batcher import DynamicBatcher
from inferd_server.scheduling.pipeline import Pipeline
from inferd_server.scheduling.request_queue import RequestQueue


def load(
    name: str,
    version: int,
    folder: Path,
    declared: DeclaredConfig,
    *,
    models: ModelTable,
    backend: Backend,
    server: ServerConfig,
) -> Servable:
    """Loads `folder`/model.onnx as version `version` of model `name`, warm and ready to be called.

    An ensemble has no file: its steps run what is in `models`.
    Raises LoadError where it is missing, cannot be run, or contradicts what its config.pbtxt declares.
    """
    if declared.steps:
        return _load_ensemble(name, version, declared, models, server)
    path = folder / MODEL_FILE
    if not path.is_file():
        raise LoadError(f"version {version} has no {MODEL_FILE}: expected {name}/{version}/{MODEL_FILE}")
    model = backend.load(path)
    try:
        labels = read_labels(model.signature)
        batchable = model_config.has_batch_axis(model.signature) and rows_are_independent(model)
        config = model_config.resolve(model.signature, batchable, declared, server)
        warm_up(model, config.max_batch_size)
    except BaseException:
        model.close()
        raise
    batcher = DynamicBatcher(
        model,
        name=f"{name}/{version}",
        max_batch_size=config.max_batch_size,
        instances=config.instances,
        max_queue_delay_ns=config.max_queue_delay_microseconds * 1000,
        queue=RequestQueue(config.max_queue_size, config.max_queue_bytes),
    )
    return Servable(name, version, backend.platform, config, labels, model, batcher)


def _load_ensemble(
    name: str, version: int, declared: DeclaredConfig, models: ModelTable, server: ServerConfig
) -> Servable:
    steps = EnsembleSteps(name, declared_signature(declared), declared.steps, models)
    config = model_config.served(declared.max_batch_size or 0, server)
    pipeline = Pipeline(steps.graph, steps.bind)
    return Servable(name, version, ensemble_config.PLATFORM, config, steps.labels, steps, pipeline)
