"""The contract is the one that tritonclient speaks: every message, field, number and RPC of its own descriptors."""

from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from inferd_protocol import grpc_service_pb2, model_config_pb2
from inferd_protocol.methods import METHODS, Access
from tritonclient.grpc import model_config_pb2 as triton_config
from tritonclient.grpc import service_pb2 as triton_service


def _contract(file: FileDescriptor) -> descriptor_pb2.FileDescriptorProto:
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    # Where a file lies and what it is called is each project's own affair.
    for field in ("name", "dependency", "options", "source_code_info"):
        proto.ClearField(field)  # type: ignore[arg-type]
    for service in proto.service:
        for method in service.method:
            method.ClearField("options")
    return proto


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(grpc_service_pb2, triton_service), (model_config_pb2, triton_config)],
    ids=["service", "config"],
)
def test_the_messages_are_tritons_to_the_last_field_number(ours, theirs) -> None:  # type: ignore[no-untyped-def]
    assert _contract(ours.DESCRIPTOR) == _contract(theirs.DESCRIPTOR)


def test_every_rpc_has_a_path_and_an_access() -> None:
    assert len(METHODS) == 20
    assert METHODS["ModelInfer"].path == "/inference.GRPCInferenceService/ModelInfer"
    assert METHODS["ModelStreamInfer"].streaming
    assert METHODS["RepositoryModelLoad"].access is Access.CONTROL
    assert METHODS["ServerLive"].access is Access.HEALTH


@pytest.mark.parametrize("order", [("tritonclient.grpc", "inferd_client"), ("inferd_client", "tritonclient.grpc")])
def test_both_clients_import_in_one_process(order: tuple[str, str]) -> None:
    code = f"import {order[0]}, {order[1]}; from inferd_client import Client; Client('127.0.0.1:1').close()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
