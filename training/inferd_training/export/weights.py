"""Where the weights of an ONNX file lie: within it or, where they are too many for one message, in a file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from inferd_protocol.artefact import WEIGHTS_FILE
from onnx import TensorProto, numpy_helper

from inferd_training.errors import ExportError
from inferd_training.export.layers import nodes

EXTERNAL_FROM = 1536 * 1024 * 1024
"""Bytes of weights from which they lie outside: protobuf's limit of 2**31 - 1 bytes, and room for the graph itself."""

_LEAST = 1024
"""Bytes of a tensor that is worth a place of its own outside: shapes, axes and other small ones stay in the graph."""

_PAGE = 4096
"""Bytes: tensors begin at multiples of it, so that the runtime can map each one instead of copying it."""


def save(proto: onnx.ModelProto, path: Path, external_from: int = EXTERNAL_FROM) -> None:
    """Writes a model to `path`, its weights to WEIGHTS_FILE beside it where they have `external_from` bytes or more.

    `proto` is used up: weights that were written are no longer in it. Raises ExportError where what is left is too
    large for one file, and OSError where the disk refuses.
    """
    # Sizes as messages: asking for the bytes would copy them.
    large = [tensor for tensor in _tensors(proto) if tensor.HasField("raw_data") and tensor.ByteSize() >= _LEAST]
    if large and sum(tensor.ByteSize() for tensor in large) >= external_from:
        with (path.parent / WEIGHTS_FILE).open("wb") as stream:
            for tensor in large:
                offset = -(-stream.tell() // _PAGE) * _PAGE
                stream.write(bytes(offset - stream.tell()))
                raw = tensor.raw_data
                stream.write(raw)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", WEIGHTS_FILE), ("offset", offset), ("length", len(raw))):
                    tensor.external_data.add(key=key, value=str(value))
    try:
        onnx.save(proto, path)
    except Exception as error:  # each protobuf runtime has its own type for a message that is too large
        raise ExportError(
            f"the model cannot be written as one file, though its weights lie in {WEIGHTS_FILE} from {external_from} "
            f"bytes on: {' '.join(str(error).split())}"
        ) from error


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """The tensors that the runtime finds by name or as constants. What holds no raw bytes is turned into such."""
    for tensor in proto.graph.initializer:
        yield _raw(tensor)
    for node in nodes(proto.graph):
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.type == onnx.AttributeProto.TENSOR:
                yield _raw(attribute.t)
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from map(_raw, attribute.g.initializer)


def _raw(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != TensorProto.STRING and not tensor.HasField("raw_data"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return tensor
