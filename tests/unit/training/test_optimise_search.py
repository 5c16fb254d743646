from __future__ import annotations

import itertools
import math

import onnx
from hypothesis import given
from hypothesis import strategies as st
from inferd_training.errors import OptimiseError
from inferd_training.optimise.search import LEAST_GAIN, groups, search
from onnx import TensorProto, helper

LAYERS = (("conv1", "relu1"), ("conv2", "relu2", "pool2"), ("dense", "add"))
ALL = frozenset(name for layer in LAYERS for name in layer)


class Machine:
    """Seconds of a set of INT8 nodes: each saves or costs something, and each border between two kinds costs."""

    def __init__(self, saved: dict[str, float], border: float) -> None:
        self.saved = saved
        self.border = border
        self.asked = 0

    def seconds(self, nodes: frozenset[str]) -> float:
        chain = [name in nodes for layer in LAYERS for name in layer]
        borders = sum(one != other for one, other in itertools.pairwise([False, *chain, False]))
        return 100 - sum(self.saved.get(name, 0.0) for name in nodes) + borders * self.border

    def __call__(self, before: frozenset[str], after: frozenset[str]) -> float:
        self.asked += 1
        return self.seconds(before) / self.seconds(after)


def test_a_layer_pays_where_none_of_its_nodes_does_alone() -> None:
    machine = Machine({"conv2": 12, "relu2": 1, "pool2": 12, "conv1": -20, "relu1": -5, "dense": 5}, border=8)
    found = search(LAYERS, machine, 60)
    assert found.complete
    assert found.nodes >= {"conv2", "relu2", "pool2", "dense"}
    assert not found.nodes & {"conv1", "relu1"}
    assert any("conv2" in move for move in found.moves)


def test_nothing_is_quantised_where_nothing_pays() -> None:
    assert search(LAYERS, Machine(dict.fromkeys(ALL, -3.0), border=2), 60).nodes == frozenset()


def test_everything_is_quantised_where_borders_are_dear() -> None:
    assert search(LAYERS, Machine(dict.fromkeys(ALL, 3.0), border=5), 60).nodes == ALL


@given(st.fixed_dictionaries({name: st.floats(-8, 8) for name in sorted(ALL)}), st.floats(0, 6))
def test_what_is_found_is_never_slower_than_either_end(saved: dict[str, float], border: float) -> None:
    machine = Machine(saved, border)
    found = search(LAYERS, machine, 60)
    # Layers that gain next to nothing went back to floating point.
    slack = LEAST_GAIN * 1.0000001
    assert machine.seconds(found.nodes) <= machine.seconds(frozenset()) * slack
    assert machine.seconds(found.nodes) <= machine.seconds(ALL) * slack


def test_what_gains_nothing_is_in_floating_point() -> None:
    # With borders all of the chain is best in INT8; without its end it is as fast, but for less than a hundredth.
    machine = Machine({"conv1": 10, "relu1": 1, "conv2": 20, "relu2": 1, "pool2": 5, "dense": 0.5}, border=0)
    found = search(LAYERS, machine, 60)
    assert found.nodes == {"conv1", "relu1", "conv2", "relu2", "pool2"}


def test_all_that_goes_back_costs_less_than_a_hundredth() -> None:
    machine = Machine(dict.fromkeys(ALL, 0.3), border=-5)
    best = min(machine.seconds(frozenset(nodes)) for size in range(8) for nodes in itertools.combinations(ALL, size))
    assert machine.seconds(search(LAYERS, machine, 60).nodes) <= best * LEAST_GAIN**2


def test_no_time_is_no_search() -> None:
    machine = Machine(dict.fromkeys(ALL, 3.0), border=1)
    found = search(LAYERS, machine, 0)
    assert not found.complete
    assert machine.asked <= 1


def test_a_set_that_cannot_be_had_is_gone_around() -> None:
    machine = Machine(dict.fromkeys(ALL, 3.0), border=1)

    def evaluate(before: frozenset[str], after: frozenset[str]) -> float:
        if "pool2" in after or "pool2" in before:
            raise OptimiseError("no kernel")
        return machine(before, after)

    found = search(LAYERS, evaluate, 60)
    assert found.nodes == ALL - {"pool2"}
    assert any("no kernel" in move for move in found.moves)


def test_layers_begin_at_what_does_the_work() -> None:
    names = ["Reshape", "Conv", "Relu", "MaxPool", "MatMul", "Add", "Softmax"]
    edges = [f"t{number}" for number in range(len(names) + 1)]
    nodes = [
        helper.make_node(kind, [edge], [after], name=kind)
        for kind, edge, after in zip(names, edges, edges[1:], strict=False)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in (edges[0], edges[-1])]
    proto: onnx.ModelProto = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    found = groups(proto, [name for name in names if name != "Softmax"])
    assert found == (("Reshape",), ("Conv", "Relu", "MaxPool"), ("MatMul", "Add"))
    assert math.prod(map(len, found)) == 6
