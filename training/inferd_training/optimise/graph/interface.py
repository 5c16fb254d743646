"""What must not change: the ends of the graph, the opset, and what the file says about itself."""

from __future__ import annotations

import onnx

_NEEDS_NO_INPUTS = 4
"""The first IR version in which an initialiser need not be an input as well."""


def frozen(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy whose initialisers are constants, and how many of them were inputs too, whose value a caller might give.

    Servers do not offer those as inputs, and no runtime folds them. The IR version is raised where it asks for them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    names = {tensor.name for tensor in copy.graph.initializer}
    names.update(tensor.values.name for tensor in copy.graph.sparse_initializer)
    kept = [end for end in proto.graph.input if end.name not in names]
    defaults = len(proto.graph.input) - len(kept)
    if defaults:
        del copy.graph.input[:]
        copy.graph.input.extend(kept)
    copy.ir_version = max(copy.ir_version, _NEEDS_NO_INPUTS)
    return copy, defaults


def kept(changed: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `changed` with the ends, the imported domains and the metadata of `original`.

    Raises ValueError where that would give its operators another meaning: the two are of different opsets.
    """
    imported = {entry.domain or "ai.onnx": entry.version for entry in original.opset_import}
    for entry in changed.opset_import:
        domain = entry.domain or "ai.onnx"
        used = {node.domain or "ai.onnx" for node in changed.graph.node}
        if domain in used and imported.get(domain) != entry.version:
            raise ValueError(f"it is of opset {entry.version} of {domain}, where {imported.get(domain)} was expected")
    result = onnx.ModelProto()
    result.CopyFrom(original)
    result.graph.CopyFrom(changed.graph)
    for ends, wanted in (
        (result.graph.input, original.graph.input),
        (result.graph.output, original.graph.output),
    ):
        del ends[:]
        ends.extend(wanted)
    result.graph.name = original.graph.name
    result.graph.doc_string = original.graph.doc_string
    return result
