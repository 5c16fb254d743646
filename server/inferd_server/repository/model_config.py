"""How a model is served: decided by its file and the server's settings, refined by a config.pbtxt where there is one.

The parts are in `repository.config`; this is what the rest of the server uses of them.
"""

from __future__ import annotations

from inferd_server.repository.config.answer import configuration
from inferd_server.repository.config.declared import DeclaredConfig
from inferd_server.repository.config.effective import ModelConfig, check_provider, resolve, resolve_ensemble
from inferd_server.repository.config.reading import read, read_json
from inferd_server.repository.config.sequence_model import sequence_model
from inferd_server.repository.config.shaping import shape
from inferd_server.repository.config.tensors import has_batch_axis, why_not_batchable

__all__ = [
    "DeclaredConfig",
    "ModelConfig",
    "check_provider",
    "configuration",
    "has_batch_axis",
    "read",
    "read_json",
    "resolve",
    "resolve_ensemble",
    "sequence_model",
    "shape",
    "why_not_batchable",
]
