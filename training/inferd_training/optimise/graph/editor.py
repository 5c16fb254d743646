"""A graph under change: who makes and who uses each tensor, what is constant, what shapes are known.

Only the outermost graph is changed. The bodies of loops and branches see its tensors by name, so what a body uses
counts as used, and keeps its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from inferd_training.optimise.graph.nodes import attribute, bodies, copied
from inferd_training.optimise.graph.shapes import Shape, inferred

_CONSTANTS = {
    "value": None,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""A Constant node's attributes that give numbers, and their dtypes; a tensor has its own."""

_FLOATS = {onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}


class Editor:
    """A copy of a model that can be changed; `built` gives the changed model."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        graph = self.proto.graph
        # Messages of their own: a repeated field finds its elements by comparing them.
        self.nodes = [copied(node) for node in graph.node]
        self._initialisers = {tensor.name: tensor for tensor in graph.initializer}
        self._values: dict[str, NDArray[Any]] = {}
        self._shapes, self._element_types = inferred(self.proto)
        self._outputs = {end.name for end in graph.output}
        self._inputs = {end.name for end in graph.input}
        self._taken = set(_names(graph))
        self._index()

    def _index(self) -> None:
        self._made_by = {name: node for node in self.nodes for name in node.output if name}
        self._uses: Counter[str] = Counter()
        self._users: dict[str, list[onnx.NodeProto]] = {}
        self._captured: set[str] = set()
        for node in self.nodes:
            for name in node.input:
                self._uses[name] += 1
                self._users.setdefault(name, []).append(node)
            for body in bodies(node):
                self._captured.update(_used_inside(body))

    def shape(self, name: str) -> Shape | None:
        """What is known of a tensor's extents; None where not even their number is."""
        if name in self._initialisers:
            return tuple(self._initialisers[name].dims)
        return self._shapes.get(name)

    @property
    def opset(self) -> int:
        """The version of ONNX's default domain."""
        return next(int(entry.version) for entry in self.proto.opset_import if entry.domain in ("", "ai.onnx"))

    def is_float(self, name: str) -> bool:
        """Whether a tensor is known to hold float16, float32 or float64 values."""
        return self.element_type(name) in _FLOATS

    def element_type(self, name: str) -> int:
        """ONNX's number for the type of a tensor's elements; 0 where it is not known."""
        if name in self._initialisers:
            return int(self._initialisers[name].data_type)
        return self._element_types.get(name, 0)

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of an initialiser, or of a Constant node's output; None for anything else."""
        if name not in self._values:
            value = self._constant(name)
            if value is None:
                return None
            self._values[name] = value
        return self._values[name]

    def _constant(self, name: str) -> NDArray[Any] | None:
        tensor = self._initialisers.get(name)
        if tensor is not None:
            # One that is an input too is a default that a caller may override.
            return None if name in self._inputs else numpy_helper.to_array(tensor)
        node = self._made_by.get(name)
        if node is None or node.op_type != "Constant":
            return None
        for kind, dtype in _CONSTANTS.items():
            value = attribute(node, kind)
            if value is not None:
                return numpy_helper.to_array(value) if dtype is None else np.array(value, dtype)
        return None

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor; None for inputs and initialisers."""
        return self._made_by.get(name)

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that use a tensor as an input; bodies that see it are not among them."""
        return list(self._users.get(name, ()))

    def only_user(self, name: str) -> onnx.NodeProto | None:
        """The node that uses a tensor, where nothing else does: no other node, no body, no output of the graph."""
        if self._uses[name] != 1 or self._stays(name):
            return None
        (node,) = self._users[name]
        return node

    def describe(self, name: str, shape: Shape, element_type: int) -> None:
        """Says what a new tensor is."""
        self._shapes[name] = shape
        self._element_types[name] = element_type

    def add_constant(self, array: NDArray[Any], like: str) -> str:
        """Adds an initialiser under a new name that starts as `like`; gives the name."""
        name = self.fresh(like)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self._initialisers[name] = tensor
        return name

    def fresh(self, like: str) -> str:
        """A name that nothing in the model has, in any graph of it."""
        number = 1
        while (name := f"{like}__{number}") in self._taken:
            number += 1
        self._taken.add(name)
        return name

    def changed(self) -> None:
        """To be called after a node's inputs, outputs or place were changed."""
        self._index()

    def remove(self, node: onnx.NodeProto) -> None:
        """Takes a node out."""
        self.nodes = [other for other in self.nodes if other is not node]
        self._index()

    def insert(self, node: onnx.NodeProto, *, before: onnx.NodeProto) -> None:
        """Puts a node in front of another."""
        place = next(i for i, other in enumerate(self.nodes) if other is before)
        self.nodes.insert(place, node)
        self._index()

    def can_bypass(self, node: onnx.NodeProto, source: str) -> bool:
        """Whether `bypass` can do it: not where both names must stay."""
        return not self._stays(node.output[0]) or (source in self._made_by and not self._stays(source))

    def bypass(self, node: onnx.NodeProto, source: str) -> None:
        """Takes out a node whose first output equals `source`, which its users get instead.

        Raises ValueError where it cannot.
        """
        result = node.output[0]
        if not self.can_bypass(node, source):
            raise ValueError(f"both '{result}' and '{source}' must keep their names")
        gone, stays = (source, result) if self._stays(result) else (result, source)
        if gone == source:
            # The result keeps its name, so what makes the source takes it over.
            maker = self._made_by[source]
            maker.output[:] = [stays if name == gone else name for name in maker.output]
        for user in self._users.get(gone, ()):
            user.input[:] = [stays if name == gone else name for name in user.input]
        self.remove(node)

    def _stays(self, name: str) -> bool:
        return name in self._outputs or name in self._captured

    def built(self) -> onnx.ModelProto:
        """The model without the nodes and initialisers that nothing uses any more."""
        self.sweep()
        used = set(self._uses) | self._captured | self._outputs
        graph = self.proto.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        kept = [tensor for name, tensor in self._initialisers.items() if name in used or name in self._inputs]
        # Copied first: the messages may belong to the field that is emptied.
        kept = [copied(tensor) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        valid = [copied(value) for value in graph.value_info if value.name in self._made_by]
        del graph.value_info[:]
        graph.value_info.extend(valid)
        result = onnx.ModelProto()
        result.CopyFrom(self.proto)
        return result

    def sweep(self) -> None:
        """Takes out the nodes whose outputs nothing uses."""
        while True:
            used = set(self._uses) | self._captured | self._outputs
            alive = [node for node in self.nodes if any(name in used for name in node.output)]
            if len(alive) == len(self.nodes):
                return
            self.nodes = alive
            self._index()


def _used_inside(graph: onnx.GraphProto) -> set[str]:
    """Every name that a body mentions: more than it takes from outside, which errs on the safe side."""
    return set(_names(graph))


def _names(graph: onnx.GraphProto) -> Iterable[str]:
    for ends in (graph.input, graph.output, graph.initializer, graph.value_info):
        for end in ends:
            yield end.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from node.input
        yield from node.output
        for body in bodies(node):
            yield from _names(body)
