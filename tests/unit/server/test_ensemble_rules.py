"""Ensembles: what their configs may say, how steps fit together, in what order models come and go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from google.protobuf import text_format
from inferd_protocol import model_config_pb2
from inferd_protocol.datatypes import BY_NAME
from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredConfig, DeclaredStep, DeclaredTensor
from inferd_server.repository.config.steps import read_steps
from inferd_server.repository.dependencies import cycle_through, load_order, unused_without
from inferd_server.repository.ensemble import check, declared_signature
from inferd_server.runtime.backend import Dim, Signature, TensorSpec

FP32 = BY_NAME["FP32"]
STEP = 'step { model_name: "m" model_version: -1 input_map { key: "x" value: "a" } output_map { key: "y" value: "b" } }'
IO = "input { name: 'a' data_type: TYPE_FP32 dims: 4 } output { name: 'b' data_type: TYPE_FP32 dims: 4 }"


def steps_of(text: str) -> tuple[DeclaredStep, ...]:
    return read_steps("config.pbtxt", text_format.Parse(text, model_config_pb2.ModelConfig()))


def scheduled(steps: str, head: str = "") -> str:
    return f"{head} {IO} ensemble_scheduling {{ {steps} }}"


def test_steps_are_read_in_order() -> None:
    second = STEP.replace("-1", "3").replace('"m"', '"n"')
    first, other = steps_of(scheduled(STEP + second, "platform: 'ensemble'"))
    assert first == DeclaredStep(1, "m", None, {"x": "a"}, {"y": "b"})
    assert (first.version_text, other.version_text, str(other)) == ("", "3", "step 2 (model 'n')")
    assert steps_of("platform: 'onnxruntime_onnx'") == ()
    assert steps_of(scheduled(STEP.replace("model_version: -1", "")))[0].version is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("platform: 'ensemble'", "says platform: 'ensemble', and has no ensemble_scheduling with its steps"),
        (scheduled(STEP, "platform: 'onnx'"), "says platform: 'onnx', expected 'ensemble'"),
        (scheduled(STEP, "backend: 'python'"), "says backend: 'python', expected none"),
        (scheduled(STEP).replace("output {", "input {"), "is expected to declare its input and its output"),
        (scheduled(""), "without a step"),
        (scheduled(STEP + "step { }"), "step 2 has no model_name"),
        (
            scheduled(STEP.replace("-1", "-2")),
            r"step 1 \(model 'm'\) says model_version: -2, expected one from 1, or -1 for the latest",
        ),
        (scheduled("step { model_name: 'm' }"), r"step 1 \(model 'm'\) has no input_map"),
        (scheduled(STEP.replace("output_map", "input_map")), r"step 1 \(model 'm'\) has no output_map"),
        (scheduled(STEP.replace('value: "b"', "value: ''")), "has an output_map with an empty key or value"),
        (
            scheduled(STEP, "response_cache { }"),
            "sets response_cache, which is for the models that it runs",
        ),
        (
            scheduled(STEP, "instance_group { } parameters { key: 'provider' value { string_value: 'x' } }"),
            "sets instance_group, parameters 'provider', which is for",
        ),
        (
            scheduled(STEP, "output { name: 'c' data_type: TYPE_FP32 reshape { } }"),
            "sets reshape of output 'c', and an ensemble passes tensors on as they are",
        ),
        (scheduled(STEP, "input { name: 'c' }"), "declares input 'c' of an ensemble without its data_type"),
    ],
)
def test_a_config_that_makes_no_pipeline_is_refused(text: str, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        steps_of(text)


def specs(datatype: str = "FP32", **shapes: tuple[Dim, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, BY_NAME[datatype], shape) for name, shape in shapes.items())


ROW: tuple[Dim, ...] = ("batch", 4)
MODEL = Signature(specs(x=ROW), specs(y=ROW), {})
JOIN = Signature(specs(p=ROW, q=ROW), specs(r=ROW, s=("batch", "n")), {})
OWN = Signature(specs(a=(None, 4)), specs(b=(None, 4)), {})


def step(number: int, taken: Mapping[str, str], made: Mapping[str, str], model: str = "m") -> DeclaredStep:
    return DeclaredStep(number, model, None, taken, made)


def test_tensors_find_their_ways() -> None:
    steps = [
        step(1, {"p": "left", "q": "right"}, {"s": "b"}, "join"),
        step(2, {"x": "a"}, {"y": "left"}),
        step(3, {"x": "a"}, {"y": "right"}),
    ]
    graph = check(OWN, steps, [JOIN, MODEL, MODEL])
    assert graph.tensors == ("a", "b", "left", "right")
    assert (graph.inputs, graph.outputs) == (1, (1,))
    assert [(set(node.inputs), set(node.outputs)) for node in graph.nodes] == [({2, 3}, {1}), ({0}, {2}), ({0}, {3})]


ONE = step(1, {"x": "a"}, {"y": "b"})


@pytest.mark.parametrize(
    ("own", "steps", "models", "message"),
    [
        (
            OWN,
            [step(1, {"x": "a", "z": "a"}, {"y": "b"})],
            [MODEL],
            r"step 1 \(model 'm'\): its input_map names \['z'\], the model has \['x'\]",
        ),
        (
            OWN,
            [step(1, {"x": "a"}, {"y": "b", "z": "c"})],
            [MODEL],
            r"step 1 \(model 'm'\): its output_map names \['z'\], the model has \['y'\]",
        ),
        (
            OWN,
            [step(1, {"p": "a"}, {"r": "b"}, "join")],
            [JOIN],
            r"step 1 \(model 'join'\): its input_map lacks \['q'\], the model expects \['p', 'q'\]",
        ),
        (
            OWN,
            [ONE, step(2, {"x": "a"}, {"y": "b"})],
            [MODEL, MODEL],
            r"tensor 'b' has two makers: step 1 \(model 'm'\) as output 'y' and step 2 \(model 'm'\) as output 'y'",
        ),
        (
            OWN,
            [ONE, step(2, {"x": "b"}, {"y": "a"})],
            [MODEL, MODEL],
            r"tensor 'a' has two makers: input 'a' of the ensemble and step 2 \(model 'm'\) as output 'y'",
        ),
        (
            OWN,
            [step(1, {"p": "a", "q": "nobody"}, {"r": "b"}, "join")],
            [JOIN],
            r"step 1 \(model 'join'\) as input 'q' takes tensor 'nobody', which is neither an input nor any step's",
        ),
        (
            Signature(OWN.inputs, (*OWN.outputs, *specs(c=ROW)), {}),
            [ONE],
            [MODEL],
            "output 'c' of the ensemble takes tensor 'c', which is neither an input nor any step's output",
        ),
        (
            Signature(OWN.inputs, (*OWN.outputs, *OWN.inputs), {}),
            [ONE],
            [MODEL],
            "output 'a' of the ensemble is its input of that name: a step is to make it",
        ),
        (
            Signature((*OWN.inputs, *specs(c=ROW)), OWN.outputs, {}),
            [ONE],
            [MODEL],
            "input 'c' of the ensemble is taken by no step",
        ),
        (
            OWN,
            [ONE, step(2, {"x": "b"}, {"y": "spare"})],
            [MODEL, MODEL],
            r"step 2 \(model 'm'\) makes \['spare'\], which no step takes and the ensemble does not answer",
        ),
        (
            OWN,
            [step(1, {"x": "a"}, {"y": "t"}), step(2, {"x": "t"}, {"y": "b"})],
            [Signature(specs(x=ROW), specs("INT64", y=ROW), {}), MODEL],
            r"tensor 't' differs between its ends: made by step 1 \(model 'm'\) as output 'y', INT64 \[-1, 4\]; "
            r"taken by step 2 \(model 'm'\) as input 'x', FP32 \[-1, 4\]",
        ),
        (
            OWN,
            [step(1, {"x": "a"}, {"y": "t"}), step(2, {"x": "t"}, {"y": "b"})],
            [Signature(specs(x=ROW), specs(y=("batch", 5)), {}), MODEL],
            r"made by step 1 \(model 'm'\) as output 'y', FP32 \[-1, 5\]; taken by step 2",
        ),
        (
            Signature(specs(a=(4,)), OWN.outputs, {}),
            [ONE],
            [MODEL],
            r"tensor 'a' differs between its ends: made by input 'a' of the ensemble, FP32 \[4\]; taken by step 1",
        ),
        (
            Signature(OWN.inputs, specs("FP16", b=ROW), {}),
            [ONE],
            [MODEL],
            r"as output 'y', FP32 \[-1, 4\]; taken by output 'b' of the ensemble, FP16 \[-1, 4\]",
        ),
        (
            OWN,
            [
                step(1, {"p": "a", "q": "u"}, {"r": "t"}, "join"),
                step(2, {"x": "t"}, {"y": "u"}),
                step(3, {"x": "t"}, {"y": "b"}),
            ],
            [JOIN, MODEL, MODEL],
            r"steps wait for each other's outputs, and none can begin: step 1 \(model 'join'\), step 2",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    own: Signature, steps: Sequence[DeclaredStep], models: Sequence[Signature], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        check(own, steps, models)


def test_sizes_that_are_not_fixed_agree_with_any() -> None:
    free = Signature(specs(x=("batch", "length")), specs(y=("rows", None)), {})
    steps = [step(1, {"x": "a"}, {"y": "t"}), step(2, {"x": "t"}, {"y": "b"})]
    assert check(OWN, steps, [free, MODEL]).nodes[1].name == "step 2 (model 'm')"


def test_the_signature_is_as_declared() -> None:
    declared = DeclaredConfig(
        max_batch_size=8,
        inputs=(DeclaredTensor("a", "TYPE_FP32", (-1, 4)),),
        outputs=(DeclaredTensor("b", "TYPE_STRING", ()),),
    )
    own = declared_signature(declared)
    assert [(spec.datatype.name, spec.sizes) for spec in (*own.inputs, *own.outputs)] == [
        ("FP32", [-1, -1, 4]),
        ("BYTES", [-1]),
    ]
    unbatched = DeclaredConfig(max_batch_size=0, inputs=declared.inputs)
    assert declared_signature(unbatched).inputs[0].sizes == [-1, 4]


def graph_of(edges: Mapping[str, str]) -> Callable[[str], Sequence[str]]:
    return lambda name: list(edges.get(name, ""))


def test_models_are_loaded_after_those_they_run() -> None:
    order = load_order("adz", graph_of({"a": "bc", "b": "d", "c": "d"}))
    assert order == ["d", "b", "c", "a", "z"]
    assert sorted(load_order("a", graph_of({"a": "b", "b": "a"}))) == ["a", "b"]


@pytest.mark.parametrize(
    ("edges", "cycle"),
    [
        ({"a": "bc", "b": "d", "c": "d"}, ""),
        ({"a": "a"}, "aa"),
        ({"a": "bc", "c": "de", "e": "a"}, "acea"),
        ({"a": "b", "b": "c", "c": "b"}, ""),
    ],
)
def test_cycles_are_found_from_within(edges: Mapping[str, str], cycle: str) -> None:
    assert "".join(cycle_through("a", graph_of(edges))) == cycle


@pytest.mark.parametrize(
    ("steps", "kept", "unused"),
    [
        ({"e": "mn", "m": "", "n": ""}, "", "mn"),
        ({"e": "mn", "m": "", "n": ""}, "m", "n"),
        ({"e": "mn", "f": "m", "m": "", "n": ""}, "", "n"),
        ({"e": "im", "i": "mn", "m": "", "n": ""}, "", "imn"),
        ({"e": "i", "i": "m", "m": ""}, "i", ""),
        ({"e": "m"}, "", ""),
        ({"m": ""}, "", ""),
    ],
)
def test_what_nothing_else_uses_goes_with_its_user(steps: Mapping[str, str], kept: str, unused: str) -> None:
    assert "".join(unused_without("e", steps, kept)) == unused
