"""The axes that a node names: an attribute in older opsets, an input in newer ones."""

from __future__ import annotations

import onnx

from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.nodes import attribute


def axes_of(editor: Editor, node: onnx.NodeProto) -> list[int] | None:
    """A node's axes as they are written, which may be negative; None where they are not known, or all are meant."""
    if len(node.input) > 1:
        given = editor.constant(node.input[1])
        return None if given is None else [int(axis) for axis in given.reshape(-1)]
    axes = attribute(node, "axes")
    return None if axes is None else [int(axis) for axis in axes]
