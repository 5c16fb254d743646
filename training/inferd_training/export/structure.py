"""What must hold of an ONNX file before anybody runs it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx
from inferd_protocol.artefact import OPTIMISATION_KEY
from inferd_protocol.datatypes import BY_NAME

from inferd_training.errors import VerificationError
from inferd_training.export.layers import layer_of, nodes
from inferd_training.export.report import external_files
from inferd_training.export.runtime import Limits, Runtime, limits, version

_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}
_RUNTIME_DOMAINS = {"com.microsoft"}
"""ONNX Runtime's own operators."""

_FIXES = {"Erfc": "use keras.activations.gelu with approximate=True"}
"""By the operator that no runtime has: what to write in Keras instead."""

_LOOP_FIX = (
    "a Loop runs step by step; for a fixed sequence length unroll=True unrolls it, and an LSTM layer without a mask "
    "becomes ONNX's own LSTM node"
)


@dataclass(frozen=True, slots=True)
class LoopNode:
    """A Loop or Scan in the graph: correct, but slow. `layer` is None where the node's name mentions none."""

    operator: str
    node: str
    layer: str | None
    fix: str


@dataclass(frozen=True, slots=True)
class Structure:
    """What the checks found. `inputs` and `outputs` are ONNX Runtime's types by name, as in "tensor(float)"."""

    opset: int
    ir_version: int
    limits: Limits
    inputs: dict[str, str]
    outputs: dict[str, str]
    loops: tuple[LoopNode, ...]


def check_structure(path: Path, layer_names: Collection[str] = ()) -> tuple[Structure, Runtime]:
    """Checks an ONNX file and loads it into ONNX Runtime, in this order: IR and opset versions against the runtime's
    limits, operators, the files that weights lie in, onnx.checker with shape inference, the batch axis, the runtime
    itself, the protocol's datatypes.

    `layer_names` are the Keras layers to name in messages. Raises VerificationError at the first breach.
    """
    proto = read(path)
    opset = check_versions(proto)
    # What was optimised for a machine may use what only its runtime has: that runtime is asked below.
    optimised = any(entry.key == OPTIMISATION_KEY for entry in proto.metadata_props)
    check_operators(proto, opset, layer_names, _RUNTIME_DOMAINS if optimised else ())
    external_files(path)
    try:
        # By its path: the weights of a large model are in another file, and a message could not hold both.
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"onnx.checker refuses {path.name}: {' '.join(str(error).split())}") from error
    _check_batch_axis(proto)
    runtime = Runtime(path)
    for name, kind in {**runtime.inputs, **runtime.outputs}.items():
        if kind not in {datatype.onnx for datatype in BY_NAME.values()}:
            raise VerificationError(f"'{name}' is a {kind}, which the protocol cannot carry: give it another dtype")
    loops = tuple(
        LoopNode(node.op_type, node.name, layer_of(node.name, layer_names), _LOOP_FIX)
        for node in nodes(proto.graph)
        if node.op_type in ("Loop", "Scan")
    )
    return Structure(opset, proto.ir_version, limits(), runtime.inputs, runtime.outputs, loops), runtime


def read(path: Path) -> onnx.ModelProto:
    """Parses an ONNX file, but nothing that lies in others. Raises VerificationError where it is missing or is none."""
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise VerificationError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the protobuf runtimes raise types of their own
        raise VerificationError(f"{path} is not an ONNX file: export the model again") from error


def check_versions(proto: onnx.ModelProto) -> int:
    """The opset of ONNX's default domain, where the installed runtime takes it and the IR version; else raises
    VerificationError.
    """
    allowed = limits()
    runtime = f"ONNX Runtime {version()}"
    if not 3 <= proto.ir_version <= allowed.ir:
        raise VerificationError(
            f"the file's IR version is {proto.ir_version}, where {runtime} takes 3 to {allowed.ir}: "
            "export it with an older onnx or serve it with a newer runtime"
        )
    default = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if len(default) != 1:
        raise VerificationError("the file names no opset of ONNX's default domain: export the model again")
    # 7 is the oldest that ONNX Runtime documents as supported.
    if not 7 <= default[0] <= allowed.opset:
        raise VerificationError(
            f"the file's opset is {default[0]}, where {runtime} takes 7 to {allowed.opset}: export it with another"
        )
    return int(default[0])


def check_operators(
    proto: onnx.ModelProto, opset: int, layer_names: Collection[str] = (), domains: Collection[str] = ()
) -> None:
    """Raises VerificationError for an operator, in whichever graph of the model, that ONNX does not define.

    Operators of `domains` are the runtime's own, which is asked for them when it loads the file.
    """
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for node in nodes(proto.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if node.domain in domains:
            continue
        # Without a domain of its own in the file, an operator counts as the default domain's.
        if node.domain in _DOMAINS and onnx.defs.has(node.op_type, versions.get(domain, opset), domain):
            continue
        layer = layer_of(node.name, layer_names)
        place = f"node '{node.name}'" + (f", layer '{layer}'" if layer else "")
        of = f" of the domain '{node.domain}'" if node.domain not in _DOMAINS else f" in opset {opset}"
        fix = _FIXES.get(node.op_type, "replace what needs it by layers that ONNX has operators for")
        raise VerificationError(f"no runtime has the operator {node.op_type}{of} ({place}): {fix}")


def _check_batch_axis(proto: onnx.ModelProto) -> None:
    initial = {tensor.name for tensor in proto.graph.initializer}
    for kind, ends in (("input", proto.graph.input), ("output", proto.graph.output)):
        for end in ends:
            if end.name in initial:
                continue
            axes = end.type.tensor_type.shape.dim
            if not axes:
                raise VerificationError(f"the {kind} '{end.name}' has no axes, where axis 0 must be the batch")
            if axes[0].dim_value:
                raise VerificationError(
                    f"axis 0 of the {kind} '{end.name}' is fixed at {axes[0].dim_value}: "
                    "export the model with a dynamic batch axis"
                )
