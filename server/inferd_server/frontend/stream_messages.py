"""The messages of ModelStreamInfer, which are those of ModelInfer in a wrapper."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol import wire
from inferd_protocol.reasons import Parameter

_INFER_RESPONSE = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER
_IS_FINAL: Mapping[str, pb.InferParameter] = {Parameter.FINAL_RESPONSE: pb.InferParameter(bool_param=True)}
_FINAL = pb.ModelInferResponse(parameters=_IS_FINAL).SerializeToString()
"""What says that a request has no further answer, as Triton says it in every answer of a stream."""


def stream_answer(message: bytes) -> bytes:
    """A ModelInferResponse's bytes as those of a ModelStreamInferResponse."""
    # Fields come in any order, so that a parameter may stand after the tensors.
    return b"".join((wire.prefix(_INFER_RESPONSE, len(message) + len(_FINAL)), message, _FINAL))


def stream_error(request_id: str, error: str) -> bytes:
    """A ModelStreamInferResponse's bytes that say why a request has no answer."""
    return pb.ModelStreamInferResponse(
        error_message=error, infer_response=pb.ModelInferResponse(id=request_id, parameters=_IS_FINAL)
    ).SerializeToString()


def request_id(message: bytes) -> str:
    """The id in a ModelInferRequest's bytes; empty where it has none, or they are no such message."""
    try:
        return pb.ModelInferRequest.FromString(message).id
    except DecodeError:
        return ""
