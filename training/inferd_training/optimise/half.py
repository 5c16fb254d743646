"""FP16 for GPUs, by ONNX Runtime's own converter."""

from __future__ import annotations

import onnx
import onnxruntime as ort

from inferd_training.errors import OptimiseError

_GPU = "CUDAExecutionProvider"


def half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights and sums in FP16; inputs and outputs keep their dtypes.

    Raises OptimiseError where no GPU is there to run it on: a CPU computes FP16 by way of FP32, which is slower, and
    what cannot be measured is not offered. BF16 is not made: before opset 22 ONNX has no convolution, pooling or LSTM
    in it, and exports are of opset 17.
    """
    if _GPU not in ort.get_available_providers():
        raise OptimiseError("skipped, since it pays on a GPU alone and there is none here")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    try:
        made: onnx.ModelProto = convert_float_to_float16(copied, keep_io_types=True)
    except Exception as error:  # it raises what it meets
        raise OptimiseError(f"the conversion fails: {' '.join(str(error).split())}") from error
    return made
