"""From a node of the ONNX graph back to the Keras layer that it came from, by its name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import onnx

_COUNTER = re.compile(r"_\d+$")


def layer_of(node: str, layer_names: Collection[str]) -> str | None:
    """The layer that a node's name mentions, with the layers inside it ("block/dense"); None where it mentions none.

    TensorFlow names a node "model_1/dense_1/MatMul": one scope a layer, each with a counter of its own behind it. So a
    scope without its counter is tried before the scope itself.
    """
    found: list[str] = []
    for scope in node.split("/"):
        bare = _COUNTER.sub("", scope)
        for candidate in (bare, scope):
            if candidate in layer_names and candidate not in found:
                found.append(candidate)
                break
    return "/".join(found) or None


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those in the bodies of loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from nodes(attribute.g)
            for inner in attribute.graphs:
                yield from nodes(inner)
