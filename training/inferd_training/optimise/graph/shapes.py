"""Shapes of all tensors, with the batch free: ONNX's inference, carried on where a computed shape ends it."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto, numpy_helper

from inferd_training.optimise.graph.arithmetic import Numbers, computed
from inferd_training.optimise.graph.extents import Extent, Named, extent, product
from inferd_training.optimise.graph.nodes import attribute, bodies

Shape = tuple[Named, ...]
"""Extents; a name where two extents of the same name are equal, None where nothing is known."""

_INTEGERS = {TensorProto.INT32, TensorProto.INT64}

_MOST_NUMBERS = 64
"""Of a tensor that may be a shape. Others hold data."""


def inferred(proto: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and element types by tensor name, of the outermost graph."""
    shapes, types = _by_onnx(proto)
    pass_ = _Pass(proto, shapes, types)
    for node in proto.graph.node:
        pass_.visit(node)
    return shapes, types


class _Pass:
    """Goes through the nodes in order, and knows what integers the computed shapes are made of."""

    def __init__(self, proto: onnx.ModelProto, shapes: dict[str, Shape], types: dict[str, int]) -> None:
        self._shapes = shapes
        self._types = types
        self._opsets = list(proto.opset_import)
        self._versions = {entry.domain or "": entry.version for entry in proto.opset_import}
        self._versions.setdefault("", self._versions.get("ai.onnx", 1))
        self._constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._numbers: dict[str, Numbers] = {}
        for name, tensor in self._constants.items():
            self._shapes[name] = tuple(tensor.dims)
            self._types[name] = tensor.data_type
            self._remember(name, tensor)
        self._better: set[str] = set()

    def visit(self, node: onnx.NodeProto) -> None:
        """Learns what can be learnt of a node's outputs."""
        if node.domain not in ("", "ai.onnx") or any(bodies(node)):
            return
        if node.op_type == "Constant":
            value = attribute(node, "value")
            if isinstance(value, TensorProto):
                self._constants[node.output[0]] = value
                self._remember(node.output[0], value)
            return
        numbers = self._computed(node)
        if numbers is not None:
            self._numbers[node.output[0]] = numbers
        asked = _SHAPED.get(node.op_type)
        shape = None if asked is None else asked(self, node)
        if shape is not None:
            self._improve(node.output[0], shape)
        elif any(name in self._better for name in node.input):
            self._infer(node)

    def _remember(self, name: str, tensor: TensorProto) -> None:
        if (
            tensor.data_type in _INTEGERS
            and len(tensor.dims) <= 1
            and (not tensor.dims or tensor.dims[0] <= _MOST_NUMBERS)
        ):
            self._numbers[name] = tuple(Extent(int(number)) for number in numpy_helper.to_array(tensor).reshape(-1))

    def _improve(self, name: str, shape: Shape) -> None:
        old = self._shapes.get(name, ())
        if len(old) == len(shape):
            shape = tuple(_better(a, b) for a, b in zip(shape, old, strict=True))
        if shape != old:
            self._shapes[name] = shape
            self._better.add(name)

    def _infer(self, node: onnx.NodeProto) -> None:
        """Asks ONNX about this node alone, with what is known of its inputs now."""
        known = {name: self._type(name) for name in node.input if name}
        if not all(self._types.get(name) for name in known):
            return
        data = {name: self._constants[name] for name in node.input if name in self._constants}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._versions[""], "")
            found = onnx.shape_inference.infer_node_outputs(schema, node, known, data, opset_imports=self._opsets)
        except (onnx.shape_inference.InferenceError, onnx.defs.SchemaError, ValueError, RuntimeError):
            # Then it stays at what was inferred of the whole graph.
            return
        for name, value in found.items():
            if value.HasField("tensor_type") and value.tensor_type.HasField("shape"):
                self._improve(name, extents_of(value.tensor_type))

    def _type(self, name: str) -> onnx.TypeProto:
        shape = self._shapes.get(name)
        return onnx.helper.make_tensor_type_proto(self._types.get(name, 0), shape)

    def _extents(self, name: str) -> tuple[Extent | None, ...] | None:
        shape = self._shapes.get(name)
        return None if shape is None else tuple(extent(named) for named in shape)

    def _computed(self, node: onnx.NodeProto) -> Numbers | None:
        """The integers of a node's output, where it computes with shapes."""
        if node.op_type == "Shape":
            extents = self._extents(node.input[0])
            first, last = attribute(node, "start", 0), attribute(node, "end", None)
            return None if extents is None else extents[first:last]
        operands = [self._numbers[name] for name in node.input if name in self._numbers]
        if len(operands) < sum(map(bool, node.input)) or self._types.get(node.output[0]) not in _INTEGERS:
            return None
        return computed(node.op_type, operands)

    def reshape(self, node: onnx.NodeProto) -> Shape | None:
        """The shape that a Reshape gives."""
        asked, source = self._numbers.get(node.input[1]), self._extents(node.input[0])
        if asked is None or source is None or attribute(node, "allowzero", 0):
            return None
        zero, rest = Extent(0), Extent(-1)
        if asked.count(rest) > 1 or any(one == zero and place >= len(source) for place, one in enumerate(asked)):
            return None
        given = [source[place] if one == zero else one for place, one in enumerate(asked)]
        if rest in given:
            total = product(source)
            others = product(one for one in given if one != rest)
            if total is not None and others is not None:
                given[given.index(rest)] = total.divided(others)
            else:
                given[given.index(rest)] = None
        return tuple(None if one is None else one.named for one in given)

    def expand(self, node: onnx.NodeProto) -> Shape | None:
        """The shape that an Expand gives."""
        asked, source = self._numbers.get(node.input[1]), self._extents(node.input[0])
        if asked is None or source is None:
            return None
        rank = max(len(asked), len(source))
        one = Extent(1)
        pairs = zip((*((one,) * (rank - len(asked))), *asked), (*((one,) * (rank - len(source))), *source), strict=True)
        given = [b if a == one else a if b == one or a == b else None for a, b in pairs]
        return tuple(None if each is None else each.named for each in given)

    def filled(self, node: onnx.NodeProto) -> Shape | None:
        """The shape that a ConstantOfShape gives."""
        asked = self._numbers.get(node.input[0])
        return None if asked is None else tuple(None if one is None else one.named for one in asked)


_SHAPED: dict[str, Callable[[_Pass, onnx.NodeProto], Shape | None]] = {
    "Reshape": _Pass.reshape,
    "Expand": _Pass.expand,
    "ConstantOfShape": _Pass.filled,
}


def _better(new: Named, old: Named) -> Named:
    if isinstance(new, int) or isinstance(old, int):
        return new if isinstance(new, int) else old
    return new if new is not None else old


def extents_of(tensor: onnx.TypeProto.Tensor) -> Shape:
    """What a type says of each axis."""
    return tuple(int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim)


def _by_onnx(proto: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    """What ONNX infers from the graph's inputs, else what the file says."""
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in proto.graph.value_info:
        tensor = value.type.tensor_type
        types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            # Without its names: a converter may have given the same one to different extents.
            shapes[value.name] = tuple(one if isinstance(one, int) else None for one in extents_of(tensor))
    for ends in (graph.value_info, graph.input, graph.output):
        for value in ends:
            tensor = value.type.tensor_type
            types[value.name] = tensor.elem_type or types.get(value.name, 0)
            if tensor.HasField("shape"):
                found, said = extents_of(tensor), shapes.get(value.name, ())
                if len(found) == len(said):
                    found = tuple(_better(a, b) for a, b in zip(found, said, strict=True))
                shapes[value.name] = found
    return shapes, types
