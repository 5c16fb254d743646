"""The steps of a loaded ensemble, each with the version that serves now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inferd_server.errors import LoadError, ModelNotFound, ModelNotReady
from inferd_server.repository import ensemble
from inferd_server.repository.config.declared import DeclaredStep
from inferd_server.repository.servable import Servable
from inferd_server.repository.table import ModelTable
from inferd_server.request import AnswerForm
from inferd_server.runtime.backend import Signature
from inferd_server.scheduling.graph import BoundStep

Found = BoundStep | str
"""A step with the version that serves, or why none does."""


@dataclass(frozen=True, slots=True)
class _Binding:
    """What the steps were bound to at one generation of the table."""

    generation: int
    signatures: tuple[Signature, ...]
    steps: tuple[Found, ...]


class EnsembleSteps:
    """Follows the table of models: when it has changed, the steps are bound anew, and held against each other anew.

    `signature` is the ensemble's own. Raises LoadError where a step's model cannot be called or does not fit.
    """

    def __init__(self, name: str, signature: Signature, steps: Sequence[DeclaredStep], models: ModelTable) -> None:
        self.steps = tuple(steps)
        self.signature = signature
        self._name = name
        self._models = models
        generation = models.generation
        servables = [_loaded(step, models.find) for step in self.steps]
        signatures = tuple(servable.signature for servable in servables)
        self.graph = ensemble.check(signature, self.steps, signatures)
        self.labels = {
            spec.name: servable.labels[output]
            for spec in signature.outputs
            for step, servable in zip(self.steps, servables, strict=True)
            for output, tensor in step.outputs.items()
            if tensor == spec.name and output in servable.labels
        }
        """Those of the models that make the ensemble's outputs, by output."""
        self.provider = ", ".join(sorted({servable.model.provider for servable in servables}))
        bound = tuple(self._bound(step, servable) for step, servable in zip(self.steps, servables, strict=True))
        self._binding = _Binding(generation, signatures, bound)

    @property
    def model_names(self) -> frozenset[str]:
        """The models that are run."""
        return frozenset(step.model for step in self.steps)

    def bind(self, number: int) -> BoundStep:
        """A step, by its number from 0, with the version that serves now.

        Raises ModelNotReady where none does, or where what serves does not fit the other steps any more.
        """
        binding = self._binding
        if binding.generation != self._models.generation:
            binding = self._binding = self._bind_anew(binding)
        found = binding.steps[number]
        if isinstance(found, str):
            raise ModelNotReady(self._name, None, found)
        return found

    def check(self) -> None:
        """Raises ModelNotReady where any step cannot be run."""
        for number in range(len(self.steps)):
            self.bind(number)

    def close(self) -> None:
        """Nothing is freed: the models are not the ensemble's."""

    def _bind_anew(self, before: _Binding) -> _Binding:
        # The generation first: what changes after it is seen the next time.
        generation = self._models.generation
        found = [_found(step, self._models.find) for step in self.steps]
        signatures = tuple(
            old if isinstance(one, str) else one.signature for one, old in zip(found, before.signatures, strict=True)
        )
        if signatures != before.signatures:
            try:
                ensemble.check(self.signature, self.steps, signatures)
            except LoadError as error:
                why = f"its steps do not fit each other any more: {error}"
                return _Binding(generation, before.signatures, (why,) * len(self.steps))
        steps = tuple(
            one if isinstance(one, str) else self._kept(old, step, one)
            for one, old, step in zip(found, before.steps, self.steps, strict=True)
        )
        return _Binding(generation, signatures, steps)

    def _kept(self, old: Found, step: DeclaredStep, servable: Servable) -> BoundStep:
        if isinstance(old, BoundStep) and old.scheduler is servable.batcher:
            return old
        return self._bound(step, servable)

    def _bound(self, step: DeclaredStep, servable: Servable) -> BoundStep:
        places = {name: place for place, name in enumerate(self.graph.tensors)}
        signature = servable.signature
        return BoundStep(
            name=str(step),
            scheduler=servable.batcher,
            batched=servable.config.batched,
            timeout_ns=servable.config.default_timeout_microseconds * 1000,
            specs=signature.inputs,
            inputs=tuple(places[step.inputs[spec.name]] for spec in signature.inputs),
            outputs=tuple(
                (place, places[step.outputs[spec.name]])
                for place, spec in enumerate(signature.outputs)
                if spec.name in step.outputs
            ),
            answer=AnswerForm(
                servable.name, str(servable.version), tuple((spec.name, spec.datatype) for spec in signature.outputs)
            ),
        )


def _found(step: DeclaredStep, find: Callable[[str, str], Servable]) -> Servable | str:
    try:
        found = find(step.model, step.version_text)
    except (ModelNotFound, ModelNotReady) as error:
        # To the caller of the ensemble, which is there, neither is 'not found'.
        return f"{step}: {error}"
    if found.sequences is not None:
        return f"{step}: the model keeps sequences, and a request of an ensemble is a step of none: call it directly"
    return found


def _loaded(step: DeclaredStep, find: Callable[[str, str], Servable]) -> Servable:
    found = _found(step, find)
    if isinstance(found, str):
        raise LoadError(found)
    return found
