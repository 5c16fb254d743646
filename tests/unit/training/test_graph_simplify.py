"""The whole simplification: of what Keras exports, of random chains, and of files that it refuses or leaves alone."""

import keras
import keras_models
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferd_training.errors import OptimiseError
from inferd_training.export.convert import convert
from inferd_training.export.runtime import limits
from inferd_training.families.family import Scaling
from inferd_training.optimise.graph import admission
from inferd_training.optimise.graph import simplify as stages
from inferd_training.optimise.graph.simplify import Simplified, simplify
from keras import layers
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import assert_same, normal, operators, parse, rows, run


def simplified(proto: onnx.ModelProto) -> Simplified:
    """Simplified without a dropped stage, and the same in everything that must stay."""
    original = proto.SerializeToString()
    after = simplify(proto)
    assert proto.SerializeToString() == original
    assert not [note for note in after.notes if "dropped" in note]
    assert all("\n" not in note and note for note in after.notes)
    assert list(after.proto.opset_import) == list(proto.opset_import)
    assert list(after.proto.metadata_props) == list(proto.metadata_props)
    assert {node.domain for node in after.proto.graph.node} <= {""}
    assert_same(proto, after.proto)
    return after


def encoder() -> keras.Model:
    """A block of a Transformer over 6 tokens."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    hidden = layers.Embedding(11, 8)(tokens)
    normal_ = layers.LayerNormalization(epsilon=1e-6)(hidden)
    hidden = layers.Add()([hidden, layers.MultiHeadAttention(2, 4)(normal_, normal_)])
    fed = layers.LayerNormalization(center=False, scale=False)(hidden)
    fed = layers.Dense(16, activation=keras_models.approximate_gelu)(fed)
    hidden = layers.Add()([hidden, layers.Dense(8)(fed)])
    return keras.Model(tokens, layers.Dense(3, name="score")(layers.GlobalAveragePooling1D()(hidden)))


def normalised() -> keras.Model:
    """Batch normalisations in all places, over a picture of bytes."""
    image = keras.Input((12, 12, 3), name="image")
    hidden = layers.Rescaling(1 / 127.5, offset=-1)(image)
    hidden = layers.Conv2D(4, 3, use_bias=False)(hidden)
    hidden = layers.ReLU()(layers.BatchNormalization()(hidden))
    hidden = layers.DepthwiseConv2D(3, padding="same")(layers.BatchNormalization()(hidden))
    hidden = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(hidden))
    return keras.Model(image, layers.BatchNormalization(name="score")(layers.Dense(3, use_bias=False)(hidden)))


def moved(model: keras.Model) -> keras.Model:
    """With weights as after a training: the first ones hide what a wrong one does."""
    generator = np.random.default_rng(2)
    for weight in model.weights:
        if "variance" in weight.path:
            weight.assign(generator.uniform(0.5, 2, weight.shape))
        elif len(weight.shape) == 1:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return model


@pytest.mark.parametrize("kind", keras_models.MODELS)
def test_models_of_every_kind(kind: str) -> None:
    before = convert(moved(keras_models.MODELS[kind]()), {})
    after = simplified(before)
    assert len(after.proto.graph.node) <= len(before.graph.node)
    assert after.notes[-1] == f"{len(before.graph.node)} nodes became {len(after.proto.graph.node)} nodes"


def test_a_picture_of_bytes() -> None:
    """What the reference model has before its first convolution is gone but for the cast, and no Transpose is left."""
    image = keras.Input((8, 8, 1), name="image")
    hidden = layers.MaxPooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    hidden = layers.Dense(6, activation="relu")(layers.Flatten()(hidden))
    model = keras.Model(image, layers.Dense(3, activation="softmax", name="probabilities")(hidden))
    after = simplified(convert(moved(model), {"image": Scaling("uint8", 1 / 255, -0.5)}))
    product = ["MatMul", "Add"]
    assert operators(after.proto) == [
        *("Cast", "Reshape", "Conv", "Relu", "MaxPool", "Reshape"),
        *(*product, "Relu", *product, "Softmax"),
    ]


def test_normalisations_of_batches() -> None:
    """All go: into the convolution before, the convolution behind but for its padding's sake, and the product."""
    after = simplified(convert(moved(normalised()), {"image": Scaling("uint8", 1.0, 0.0)}))
    assert "Mul" not in operators(after.proto)
    assert operators(after.proto).count("Add") == 2


def test_a_transformer() -> None:
    after = simplified(convert(moved(encoder()), {}))
    assert operators(after.proto).count("LayerNormalization") == 2
    assert not {"Shape", "Unsqueeze", "Squeeze", "Concat", "ReduceProd"} & set(operators(after.proto))
    assert operators(after.proto).count("Transpose") == 4


def test_recurrent_layers_lose_their_zeros() -> None:
    after = simplified(convert(moved(keras_models.recurrent("LSTM")), {}))
    assert operators(after.proto) == ["Transpose", "LSTM", "Squeeze", "MatMul", "Add"]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("Mul", "Div", "Add", "Sub", "Neg", "BatchNormalization", "Transpose", "Conv", "Relu", "Twice")
        ),
        st.integers(0, 2**16),
    ),
    max_size=7,
)


def chain(steps: list[tuple[str, int]], padded: bool, flat: bool) -> onnx.ModelProto:
    """uint8 [batch, 3, 4, 4] through the steps, and at the end a product where `flat`."""
    nodes = [helper.make_node("Cast", ["image"], ["t0"], to=TensorProto.FLOAT)]
    constants: dict[str, np.ndarray] = {}
    shape = [3, 4, 4]

    def constant(name: str, array: np.ndarray) -> str:
        constants[name] = array.astype(np.float32)
        return name

    for number, (kind, seed) in enumerate(steps):
        generator = np.random.default_rng(seed)
        before, after = f"t{number}", f"t{number + 1}"
        inputs = [before]
        options: dict[str, object] = {}
        if kind in ("Mul", "Div", "Add", "Sub"):
            extents = [extent if generator.integers(2) else 1 for extent in shape[generator.integers(3) :]]
            array = generator.uniform(0.5, 1.5, extents) * generator.choice([-1, 1])
            inputs.insert(int(kind != "Div" and generator.integers(2)), constant(f"c{number}", array))
            if kind == "Div":
                inputs.reverse()
        elif kind == "BatchNormalization":
            inputs += [constant(f"{part}{number}", generator.uniform(0.5, 1.5, shape[0])) for part in "gbmv"]
        elif kind == "Transpose":
            order = generator.permutation(3)
            options["perm"] = [0, *(int(axis) + 1 for axis in order)]
            shape = [shape[axis] for axis in order]
        elif kind == "Conv":
            outputs, kernel = int(generator.integers(1, 5)), min(2, *shape[1:])
            weights = generator.standard_normal((outputs, shape[0], kernel, kernel))
            inputs.append(constant(f"w{number}", weights))
            if generator.integers(2):
                inputs.append(constant(f"b{number}", generator.standard_normal(outputs)))
            options["pads"] = [1, 0, 0, 1] if padded else [0, 0, 0, 0]
            shape = [outputs, *(extent - kernel + 1 + padded for extent in shape[1:])]
        elif kind == "Twice":
            nodes.append(helper.make_node("Add", [before, before], [after]))
            continue
        nodes.append(helper.make_node(kind, inputs, [after], name=f"n{number}", **options))
    last = f"t{len(steps)}"
    if flat:
        width = int(np.prod(shape))
        weights = np.random.default_rng(len(steps)).standard_normal((width, 2))
        nodes.append(helper.make_node("Flatten", [last], ["flat"]))
        nodes.append(helper.make_node("MatMul", ["flat", constant("weights", weights)], ["y"]))
        shape = [2]
    else:
        nodes.append(helper.make_node("Abs" if padded else "Identity", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *shape])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(STEPS, st.booleans(), st.booleans())
def test_random_chains(steps: list[tuple[str, int]], padded: bool, flat: bool) -> None:
    simplified(chain(steps, padded, flat))


def scaled(**options: int) -> onnx.ModelProto:
    return parse(
        "g (float[batch, 3] x) => (float[batch, 2] y) { a = Mul(x, s)  y = MatMul(a, w) }",
        s=2.0,
        w=normal(3, 2),
        **options,
    )


@pytest.mark.parametrize("opset", [7, limits().opset])
def test_the_oldest_and_the_newest_opset(opset: int) -> None:
    assert operators(simplified(scaled(opset=opset)).proto) == ["MatMul"]


@pytest.mark.parametrize("opset", [6, limits().opset + 1])
def test_opsets_that_the_runtime_does_not_take(opset: int) -> None:
    with pytest.raises(OptimiseError, match=f"the file's opset is {opset}, where ONNX Runtime"):
        simplify(scaled(opset=opset))


def test_an_operator_of_another_domain() -> None:
    proto = scaled()
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    proto.graph.node[0].domain = "com.example"
    with pytest.raises(OptimiseError, match=r"no runtime has the operator Mul of the domain 'com.example'"):
        simplify(proto)


def test_a_graph_that_is_none() -> None:
    proto = scaled()
    proto.graph.node[0].input[0] = "missing"
    with pytest.raises(OptimiseError, match=r"onnx\.checker refuses the model") as refusal:
        simplify(proto)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_weights_that_are_not_numbers(dtype: type) -> None:
    proto = scaled()
    weights = np.full((3, 2), np.nan, dtype)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(weights, "w"))
    if dtype is np.float32:
        with pytest.raises(OptimiseError, match="the weights 'w' hold NaN"):
            simplify(proto)
    else:
        with pytest.raises(OptimiseError):
            simplify(proto)


def test_weights_in_a_body_that_are_not_numbers() -> None:
    proto = loop()
    (body,) = [attribute.g for attribute in proto.graph.node[-1].attribute]
    body.initializer.append(numpy_helper.from_array(np.array([np.nan], np.float32), "inner"))
    with pytest.raises(OptimiseError, match="the weights 'inner' hold NaN"):
        simplify(proto)


def test_a_mask_of_infinities_is_no_fault() -> None:
    proto = parse(
        "g (float[batch, 3] x) => (float[batch, 3] y) { a = Add(x, mask)  y = Softmax(a) }",
        mask=np.array([0, -np.inf, 0]),
    )
    assert operators(simplified(proto).proto) == ["Add", "Softmax"]


@pytest.mark.parametrize(
    "nodes",
    [
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Mul(d, s)",
        "q, t, u = DynamicQuantizeLinear(x)  d = DequantizeLinear(q, t, u)  y = Mul(d, s)",
    ],
)
def test_a_quantised_model_is_left_alone(nodes: str) -> None:
    proto = parse(f"g (float[batch, 3] x) => (float[batch, 3] y) {{ {nodes} }}", s=0.5, z=np.uint8(3))
    after = simplify(proto)
    assert after.proto == proto
    assert after.notes[0].startswith("nothing was changed: the model is quantised already (")


def test_weights_in_another_file() -> None:
    proto = scaled()
    onnx.external_data_helper.set_external_data(proto.graph.initializer[1], "weights.bin")
    proto.graph.initializer[1].data_location = TensorProto.EXTERNAL
    after = simplify(proto)
    assert after == Simplified(proto, ("nothing was changed: the weights are in other files, and were not loaded",))


def test_more_weights_than_can_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_LARGEST", 20)
    after = simplify(scaled())
    assert after.proto == scaled()
    assert after.notes == ("nothing was changed: the weights are 0.0 GiB, and up to 2 GiB can be checked",)


def loop() -> onnx.ModelProto:
    """A body that adds `scaled`, of the graph around it, and multiplies by weights that a product outside has too."""
    return parse(
        """g (float[batch, 3] x) => (float[batch, 3] y, float[batch, 3] z) {
            scaled = Mul(x, s)
            p = MatMul(scaled, w)
            z = Mul(p, s)
            y = Loop (count, always, p) <
                body = b (int64 i, bool more, float[batch, 3] state) => (bool again, float[batch, 3] next) {
                    again = Identity(more)
                    half = Mul(state, s)
                    turned = MatMul(half, w)
                    next = Add(turned, scaled)
                }
            >
        }""",
        s=0.5,
        w=normal(3, 3),
        count=np.array(3),
        always=np.array(True),
    )


def test_a_body_keeps_the_values_that_it_sees() -> None:
    """`scaled` and the weights are used inside: the product outside may not take the scale for both."""
    after = simplified(loop())
    assert operators(after.proto) == ["Mul", "MatMul", "Mul", "Loop"]


def test_branches_keep_the_values_that_they_see() -> None:
    proto = parse(
        """g (float[batch, 3] x) => (float[batch, 3] y) {
            a = Mul(x, s)  p = MatMul(a, w)  q = Mul(p, s)
            total = ReduceSum<keepdims = 0>(x)  test = Greater(total, nothing)
            y = If (test) <
                then_branch = yes () => (float[batch, 3] u) { u = Add(q, p) },
                else_branch = no () => (float[batch, 3] v) { v = Neg(q) }
            >
        }""",
        s=0.5,
        w=normal(3, 3),
        nothing=0.0,
    )
    assert sorted(operators(simplified(proto).proto)) == ["Greater", "If", "MatMul", "Mul", "ReduceSum"]


def test_initialisers_that_were_inputs_too() -> None:
    """As files of IR version 3 have them."""
    proto = scaled(ir=3)
    proto.graph.input.extend(
        [
            helper.make_tensor_value_info("s", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2]),
        ]
    )
    after = simplify(proto)
    assert after.notes[0] == "2 initialisers were inputs with defaults, and are constants"
    assert operators(after.proto) == ["MatMul"]
    assert [end.name for end in after.proto.graph.input] == ["x"]
    feed = {"x": normal(4, 3)}
    np.testing.assert_allclose(run(after.proto, feed)[0], run(proto, feed)[0], rtol=1e-5)


def test_an_input_without_use_stays() -> None:
    proto = scaled()
    proto.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, ["batch", 1]))
    assert [end.name for end in simplified(proto).proto.graph.input] == ["x", "unused"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (string[batch] x) => (string[batch] y) { y = Identity(x) }", "nothing random can be drawn"),
        ("g (float x) => (float y) { y = Relu(x) }", "the input 'x' has no batch axis"),
        ("g (float[2] a, float[3] b) => (float[5] y) { y = Concat<axis = 0>(a, b) }", "no batch axis in common"),
        (
            "g (float[batch, 4] x) => (float[batch, 1] y) { y = GatherElements<axis = 1>(x, far) }",
            "ONNX Runtime fails on the inputs",
        ),
    ],
)
def test_a_model_whose_answers_cannot_be_had(text: str, reason: str) -> None:
    proto = parse(text, **({"far": np.array([[9]])} if "far" in text else {}))
    after = simplify(proto)
    assert after.proto is proto
    assert after.notes[0].startswith("nothing was changed: its answers cannot be compared, since ")
    assert reason in after.notes[0]


def test_a_picture_of_any_size_is_tried_with_a_larger_one() -> None:
    proto = parse(
        """g (float[batch, 1, height, width] x) => (float[batch, 1, h, w] y)
            { a = MaxPool<kernel_shape = [16, 16]>(x)  b = Conv<kernel_shape = [1, 1]>(a, k)  y = Mul(b, s) }""",
        k=normal(1, 1, 1, 1),
        s=2.0,
    )
    assert operators(simplify(proto).proto) == ["MaxPool", "Conv"]


def test_a_fixed_batch() -> None:
    proto = parse(
        "g (float[4, 3] x) => (float[4, 2] y) { a = Mul(x, s)  y = MatMul(a, w) }", s=normal(4, 1), w=normal(3, 2)
    )
    assert operators(simplify(proto).proto) == ["Mul", "MatMul"]


def test_answers_are_compared_on_given_samples() -> None:
    proto = parse(
        "g (int64[batch, 2] x) => (float[batch, 2, 4] y) { a = Sub(x, far)  e = Gather(w, a)  y = Mul(e, s) }",
        far=np.array(500),
        w=normal(9, 4),
        s=2.0,
    )
    assert "ONNX Runtime fails" in simplify(proto).notes[0]
    after = simplify(proto, {"x": np.array([[500, 501], [502, 503], [504, 508]])})
    assert after.notes[-1] == "3 nodes became 3 nodes"


def test_a_stage_that_changes_an_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        copy.graph.initializer[1].CopyFrom(numpy_helper.from_array(normal(3, 2) * np.float32(1.001), "w"))
        return copy, ["done"]

    def broken(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        copy.graph.node[0].input[0] = "missing"
        return copy, ["done"]

    def failing(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
        raise KeyError("anything")

    monkeypatch.setattr(stages, "_STAGES", tuple((f.__name__, (f,)) for f in (wrong, broken, failing)))
    after = simplify(scaled())
    assert operators(after.proto) == ["Mul", "MatMul"]
    assert after.notes[0].startswith("wrong: dropped, since after it the output 'y' differs by up to 0.00")
    assert after.notes[1].startswith("broken: dropped, since after it ValidationError")
    assert after.notes[2] == "failing: dropped, since after it KeyError: 'anything'"


def test_rows_stay_apart() -> None:
    """The rows' own answers, whatever lies beside them."""
    after = simplified(convert(moved(encoder()), {})).proto
    feed = rows(after, 4)
    together = run(after, feed)[0]
    for row in range(4):
        np.testing.assert_allclose(
            run(after, {"tokens": feed["tokens"][row : row + 1]})[0][0], together[row], rtol=1e-4
        )
