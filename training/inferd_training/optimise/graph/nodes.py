"""One node at a time: its attributes, and the graphs inside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import onnx

_Message = TypeVar("_Message", onnx.NodeProto, onnx.TensorProto, onnx.ValueInfoProto, onnx.AttributeProto)


def copied(message: _Message) -> _Message:
    """A message of its own, which belongs to no model."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, `default` where it has none of that name."""
    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    """Sets a node's attribute; None removes it."""
    kept = [copied(candidate) for candidate in node.attribute if candidate.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node: a loop's body, a condition's branches."""
    for candidate in node.attribute:
        if candidate.type == onnx.AttributeProto.GRAPH:
            yield candidate.g
        yield from candidate.graphs


def title(node: onnx.NodeProto) -> str:
    """A node as messages call it: its operator and its name."""
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type
