"""An ensemble's steps among its tensors, and a step with the version that runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from inferd_protocol.tensors import Tensor

from inferd_server.errors import InvalidRequest, RuntimeFailure, ServerError
from inferd_server.request import AnswerForm, Content, Reply
from inferd_server.runtime.backend import TensorSpec
from inferd_server.scheduling.scheduler import Scheduler
from inferd_server.scheduling.work import Layout

_MOST_LAYOUTS = 1024
"""Layouts that a step remembers; requests of more shapes start over."""


@dataclass(frozen=True, slots=True)
class Node:
    """A step among the tensors, which are known by their places in `Graph.tensors`."""

    name: str
    inputs: frozenset[int]
    outputs: frozenset[int]


@dataclass(frozen=True, slots=True)
class Graph:
    """How tensors flow: `inputs` of them come with the request, first and in its order; each other has one maker."""

    tensors: tuple[str, ...]
    outputs: tuple[int, ...]
    """The places of the tensors to answer, in the order of the ensemble's outputs."""
    nodes: tuple[Node, ...]
    inputs: int


@dataclass(frozen=True, slots=True, eq=False)
class BoundStep:
    """A step and the version that runs it."""

    name: str
    scheduler: Scheduler
    batched: bool
    specs: tuple[TensorSpec, ...]
    """The model's inputs."""
    inputs: tuple[int, ...]
    """For each of the model's inputs the place of its tensor."""
    outputs: tuple[tuple[int, int], ...]
    """Places among the model's outputs, each with the place of the tensor that it becomes."""
    answer: AnswerForm
    timeout_ns: int = 0
    """The longest wait in the queue that the model itself asks for; 0 for none."""
    layouts: dict[tuple[tuple[int, ...], ...], Layout] = field(default_factory=dict)

    def finish(self, reply: Reply, outputs: Sequence[Tensor]) -> ServerError | None:
        """Answers the step's request with what its run gave."""
        return reply.send(self.answer, outputs)

    def expires_ns(self, now_ns: int, request_expires_ns: int | None) -> int | None:
        """When a step that is enqueued now has waited too long: the request's own end, or the model's before it."""
        if not self.timeout_ns:
            return request_expires_ns
        expires_ns = now_ns + self.timeout_ns
        return expires_ns if request_expires_ns is None else min(expires_ns, request_expires_ns)

    def arrange(self, contents: Sequence[Content], shapes: Sequence[tuple[int, ...]]) -> tuple[Layout, int]:
        """The layout and the rows of a request with inputs of these shapes.

        Raises InvalidRequest where they are no batch of the model's, or of other shapes than it expects.
        """
        rows = 1
        row_shapes = tuple(shapes)
        if self.batched:
            sizes = {shape[:1] for shape in shapes}
            if len(sizes) > 1 or sizes & {(), (0,)}:
                raise InvalidRequest(
                    f"inputs of shapes {[list(shape) for shape in shapes]} are no batch: expected axis 0 to be the "
                    "batch axis, of as many rows in each and at least one"
                )
            rows = shapes[0][0]
            row_shapes = tuple(shape[1:] for shape in shapes)
        for spec, content in zip(self.specs, contents, strict=True):
            if isinstance(content, np.ndarray) and content.dtype != spec.datatype.numpy:
                raise RuntimeFailure(f"input '{spec.name}' is expected to be {spec.datatype.name}, got {content.dtype}")
        layout = self.layouts.get(row_shapes)
        if layout is None:
            for spec, shape in zip(self.specs, shapes, strict=True):
                if not spec.accepts(shape):
                    raise InvalidRequest(
                        f"input '{spec.name}' is expected to have shape {spec.sizes}, got {list(shape)}"
                    )
            layout = Layout.of([spec.datatype.numpy for spec in self.specs], row_shapes, batched=self.batched)
            if len(self.layouts) >= _MOST_LAYOUTS:
                self.layouts.clear()
            self.layouts[row_shapes] = layout
        return layout, rows


Bind: TypeAlias = Callable[[int], BoundStep]
"""A step, by its number from 0, with the version that serves now. Raises Unavailable where none does."""
