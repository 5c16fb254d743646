"""Loads one version: read, check, warm, and only then hand it out."""

from __future__ import annotations

from pathlib import Path

from inferd_protocol.artefact import MODEL_FILE

from inferd_server.config import ServerConfig
from inferd_server.errors import LoadError
from inferd_server.repository import model_config, sequence_config
from inferd_server.repository.model_config import DeclaredConfig
from inferd_server.repository.servable import Servable, read_labels
from inferd_server.repository.warm_up import rows_are_independent, warm_up
from inferd_server.runtime.backend import Backend
from inferd_server.scheduling import sequence_batcher
from inferd_server.scheduling.dynamic_batcher import DynamicBatcher
from inferd_server.scheduling.request_queue import RequestQueue
from inferd_server.scheduling.sequence_batcher import SequenceBatcher


def load(
    name: str, version: int, folder: Path, declared: DeclaredConfig, *, backend: Backend, server: ServerConfig
) -> Servable:
    """Loads `folder`/model.onnx as version `version` of model `name`, warm and ready to be called.

    Raises LoadError where it is missing, cannot be run, or contradicts what its config.pbtxt declares.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise LoadError(f"version {version} has no {MODEL_FILE}: expected {name}/{version}/{MODEL_FILE}")
    model = backend.load(path)
    try:
        labels = read_labels(model.signature)
        batchable = model_config.has_batch_axis(model.signature) and rows_are_independent(model)
        config = model_config.resolve(model.signature, batchable, declared, server)
        sequences = declared.sequences and sequence_config.resolve(
            model.signature, declared.sequences, batched=config.batched, max_sequences=server.max_sequences
        )
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
        on_gone=sequence_batcher.gone if sequences else None,
    )
    front = SequenceBatcher(batcher, sequences, model=name) if sequences else None
    return Servable(name, version, backend.platform, config, labels, model, batcher, front)
