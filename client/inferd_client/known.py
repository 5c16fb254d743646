"""What a client knows from earlier calls: models' metadata, and how requests like those are built and read."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferd_client import requests
from inferd_client.metadata import ModelMetadata
from inferd_client.requests import Arrays, Plan, Wanted
from inferd_client.results import InferResult, Layout, parse_infer

KINDS_PER_MODEL = 256
"""How many kinds of requests a client remembers for a model. Beyond that it forgets them all: each is cheap to make."""


@dataclass(slots=True)
class Kind:
    """Requests with inputs of the same names, shapes and dtypes: how to build one, how the last answer was laid out."""

    plan: Plan
    layout: Layout | None = None

    def read(self, answer: bytes) -> InferResult:
        """The result in an answer. Raises BadResponse."""
        result = None if self.layout is None else self.layout.read(answer)
        if result is None:
            result, self.layout = parse_infer(answer)
        return result


@dataclass(frozen=True, slots=True)
class Model:
    """What is known about a model: replaced as a whole when its metadata changes, so that no plan outlives it.

    `kinds` are found by what is asked for (the outputs' names, None for all; with a classification, both) and each
    input's name, shape and dtype.
    """

    metadata: ModelMetadata
    kinds: dict[tuple[object, ...], Kind] = field(default_factory=dict)

    def kind(self, version: str, wanted: Wanted, arrays: Arrays) -> Kind:
        """The kind of such a request, made where there was none.

        Raises InvalidInput as `requests.plan` does.
        """
        outputs, classification = wanted
        key: list[object] = [wanted if classification else outputs]
        for name, array in arrays.items():
            key += (name, array.shape, array.dtype)
        kind = self.kinds.get(tuple(key))
        if kind is None:
            kind = Kind(requests.plan(self.metadata, version, arrays, wanted))
            if len(self.kinds) >= KINDS_PER_MODEL:
                self.kinds.clear()
            self.kinds[tuple(key)] = kind
        return kind
