"""The same model written otherwise: what answers alike bit for bit, and may be quantised better."""

from __future__ import annotations

from collections import Counter

import onnx

from inferd_training.optimise.graph.editor import Editor

RISING = frozenset({"Relu", "Clip"})
"""Elementwise functions that never fall and need nothing of their neighbours: the largest of a window before one is the
largest after it."""


def named(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every node has a name of its own: by it nodes are chosen."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    taken: Counter[str] = Counter()
    for number, node in enumerate(made.graph.node):
        name = node.name or f"{node.op_type}_{number}"
        node.name = f"{name}_{number}" if taken[name] else name
        taken[name] += 1
    return made


def dense_whole(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which a product of rows with constant weights, and the addition of a constant behind it, are one Gemm.

    In floating point ONNX Runtime does so itself; in INT8 it cannot, and the sum would leave INT8 for the addition.
    """
    editor = Editor(proto)
    for product in list(editor.nodes):
        if product.op_type != "MatMul" or product.domain:
            continue
        rows, weights = product.input
        add = editor.only_user(product.output[0])
        matrix = editor.constant(weights)
        if add is None or add.op_type != "Add" or len(editor.shape(rows) or ()) != 2 or matrix is None:
            continue
        (other,) = (name for name in add.input if name != product.output[0])
        bias = editor.constant(other)
        if matrix.ndim != 2 or bias is None or bias.shape != matrix.shape[1:]:
            continue
        gemm = onnx.helper.make_node("Gemm", [rows, weights, other], list(add.output), name=product.name)
        editor.insert(gemm, before=product)
        editor.remove(product)
        editor.remove(add)
    return editor.built()


def pool_first(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy in which a MaxPool comes before the Relu or Clip that it followed, and how many did.

    The answers are the same. A quantisation behind the pair then stays behind it: ONNX Runtime's optimiser carries one
    that meets a MaxPool in front of it, into a kernel for INT8 that is thirty times as slow as the one for blocks of
    floats (ONNX Runtime 1.32, `QDQPropagationTransformer`).
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    users = Counter(name for node in graph.node for name in node.input)
    answers = {value.name for value in graph.output}
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    swapped = 0
    for place, pool in enumerate(graph.node):
        if pool.op_type != "MaxPool" or len(pool.output) != 1 or pool.input[0] not in makers:
            continue
        before = makers[pool.input[0]]
        function = graph.node[before]
        between, after = function.output[0], pool.output[0]
        if function.op_type not in RISING or users[between] != 1 or between in answers:
            continue
        pool.input[0] = function.input[0]
        pool.output[0] = between
        function.input[0] = between
        function.output[0] = after
        first, second = onnx.NodeProto(), onnx.NodeProto()
        first.CopyFrom(pool)
        second.CopyFrom(function)
        graph.node[before].CopyFrom(first)
        graph.node[place].CopyFrom(second)
        makers[between], makers[after] = before, place
        swapped += 1
    del graph.value_info[:]
    return made, swapped


def cut_off(proto: onnx.ModelProto) -> dict[str, str]:
    """The tensors that only a Relu or Clip reads, be it through MaxPools, and by each what that function makes of it.

    Whatever of such a tensor lies outside the range of what is made of it has no effect on any answer.
    """
    graph = proto.graph
    users = Counter(name for node in graph.node for name in node.input)
    users.update(value.name for value in graph.output)
    makers = {name: node for node in graph.node for name in node.output}
    found: dict[str, str] = {}
    for function in graph.node:
        if function.op_type not in RISING:
            continue
        tensor = function.input[0]
        while users[tensor] == 1:
            found[tensor] = function.output[0]
            maker = makers.get(tensor)
            if maker is None or maker.op_type != "MaxPool":
                break
            tensor = maker.input[0]
    return found
