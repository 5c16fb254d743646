"""Whether a model is in INT8 already."""

from __future__ import annotations

import onnx

from inferd_training.export.layers import nodes

_BEGINNINGS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "QLinear", "QOrdered", "MatMulInteger")
_OTHERS = frozenset({"ConvInteger", "MatMulNBits", "QAttention", "QEmbedLayerNormalization", "QGemm"})
"""ONNX's operators, and those of ONNX Runtime's own domain, which quantising for a machine brings in."""


def int8_operators(proto: onnx.ModelProto) -> tuple[str, ...]:
    """The operators of a model, in whichever graph of it, that work on or make quantised values; sorted."""
    found = {node.op_type for node in nodes(proto.graph)}
    return tuple(sorted(name for name in found if name.startswith(_BEGINNINGS) or name in _OTHERS))
