"""A Reshape to a constant shape, from the shapes that are known."""

from __future__ import annotations

import numpy as np
import onnx

from inferd_training.optimise.graph.editor import Editor
from inferd_training.optimise.graph.shapes import Shape


def target_of(old: Shape, new: Shape) -> list[int] | None:
    """What a Reshape from one shape to another is asked for: -1 for one extent that is not known, 0 for an axis that
    both have in the same place. None where that does not say it.
    """
    free = [axis for axis, extent in enumerate(new) if not isinstance(extent, int)]
    if 0 in new:
        return None
    if len(free) > 1:
        free = [axis for axis in free if axis >= len(old) or not isinstance(old[axis], str) or old[axis] != new[axis]]
    if len(free) > 1:
        return None
    return [extent if isinstance(extent, int) else -1 if axis in free else 0 for axis, extent in enumerate(new)]


def make_reshape(editor: Editor, node: onnx.NodeProto, source: str, target: list[int]) -> None:
    """Makes a node a Reshape of `source`, under the name of its first output."""
    shape = editor.add_constant(np.array(target, np.int64), f"{node.output[0]}_shape")
    node.CopyFrom(onnx.helper.make_node("Reshape", [source, shape], node.output[:1], name=node.name))
    editor.changed()
