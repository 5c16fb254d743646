"""The well-kept tool's part: constants folded, shapes worked out, dead and double nodes dropped."""

from __future__ import annotations

import logging

import onnx

_OURS = [
    "FusionConvAdd",
    "FusionConvBN",
    "FusionConvMul",
    "FusionConvTransposeAdd",
    "FusionConvTransposeBN",
    "FusionConvTransposeMul",
    "FusionGemmAdd",
    "FusionGemmMul",
]
"""What `folding` does too, for more operators, and with a look at which axis the constants lie along."""


def slim(proto: onnx.ModelProto, *, cautious: bool = False) -> onnx.ModelProto:
    """A copy of the model after OnnxSlim; `cautious` leaves out all of its patterns of several nodes.

    Raises whatever OnnxSlim raises, which may be anything.
    """
    # Imported here: it brings sympy, which takes longer to load than most models to simplify.
    import onnxslim

    logger = logging.getLogger("onnxslim")
    if not logger.handlers:
        # Else it adds one that writes to stderr. What it could not do is seen from what it gives.
        logger.addHandler(logging.NullHandler())
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    slimmed = onnxslim.slim(copy, skip_fusion_patterns=_OURS, skip_optimizations=["graph_fusion"] if cautious else None)
    if not isinstance(slimmed, onnx.ModelProto):
        raise TypeError("OnnxSlim gave no model")
    return slimmed
