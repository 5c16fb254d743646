"""One version of a model that can be called."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from inferd_protocol.artefact import LABELS_KEY

from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredStep
from inferd_server.repository.model_config import DeclaredConfig, ModelConfig
from inferd_server.repository.response_cache import ServableCache
from inferd_server.runtime.backend import Signature
from inferd_server.scheduling.scheduler import Scheduler
from inferd_server.scheduling.sequence_batcher import SequenceBatcher


class Loaded(Protocol):
    """What a version was loaded as: a model of the runtime, or the steps of an ensemble."""

    signature: Signature
    provider: str
    """The execution provider in use, under the runtime's own name."""

    def close(self) -> None:
        """Frees what was loaded. It must not be running."""


class Steps(Protocol):
    """What an ensemble runs."""

    steps: tuple[DeclaredStep, ...]

    @property
    def model_names(self) -> frozenset[str]:
        """The models that are run."""

    def check(self) -> None:
        """Raises ModelNotReady where any step cannot be run."""


@dataclass(frozen=True, slots=True, eq=False)
class Servable:
    """A loaded version: what it takes and gives, how it is served, and the batcher that runs it."""

    name: str
    version: int
    platform: str
    config: ModelConfig
    labels: Mapping[str, tuple[str, ...]]
    """By output name: one label for each index of its last axis."""
    model: Loaded
    batcher: Scheduler
    declared: DeclaredConfig = field(default_factory=DeclaredConfig)
    cache: ServableCache | None = None
    """Its part of the response cache, where its config.pbtxt asks for one and the server has one."""
    sequences: SequenceBatcher | None = None
    """What keeps the state of the model's sequences and feeds the batcher; None for a model that keeps none."""
    steps: Steps | None = None
    """Those of an ensemble."""
    tuned: str = ""
    """The session options that were chosen by measuring, in words; empty where none were."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs that callers see: the model's, without the state and controls of its sequences."""
        return self.model.signature if self.sequences is None else self.sequences.signature

    def close(self, timeout: float) -> bool:
        """Finishes what it has accepted, within `timeout` seconds, and frees the model. False where it still runs."""
        if self.cache is not None:
            # Before it drains: what it still has to run is not for those who call what came in its place.
            self.cache.close()
        idle = self.batcher.close(timeout)
        self.model.close()
        return idle


def read_labels(signature: Signature, declared: DeclaredConfig) -> Mapping[str, tuple[str, ...]]:
    """The labels that the export wrote into the model's metadata, instead of which the declared ones are taken.

    Raises LoadError where they are no {output: [label, ...]} or do not match the model's outputs.
    """
    text = signature.metadata.get(LABELS_KEY, "{}")
    try:
        written = {str(output): tuple(map(str, names)) for output, names in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise LoadError(f"the metadata {LABELS_KEY} is no JSON object of lists of labels: {error}") from error
    _check_labels(f"the metadata {LABELS_KEY}", written, signature)
    _check_labels(declared.source, declared.labels, signature)
    return {**written, **declared.labels}


def _check_labels(source: str, labels: Mapping[str, tuple[str, ...]], signature: Signature) -> None:
    outputs = {spec.name: spec for spec in signature.outputs}
    for name, names in labels.items():
        if name not in outputs:
            raise LoadError(f"{source} names output '{name}', the model has {sorted(outputs)}")
        last = outputs[name].shape[-1] if outputs[name].shape else None
        if isinstance(last, int) and last != len(names):
            raise LoadError(f"{source} has {len(names)} labels for the {last} elements of '{name}'")
