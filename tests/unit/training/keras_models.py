"""Keras models of every kind that the export must take, small enough to convert in a test."""

from typing import Any

import keras
import numpy as np
from keras import layers


def dense() -> keras.Model:
    # Default names with counters, as users leave them: dense, dense_1, dense_2.
    keras.backend.clear_session()
    value = keras.Input((6,), name="features")
    hidden = layers.Dense(5, activation="relu")(value)
    hidden = layers.Dense(4, activation="relu")(hidden)
    return keras.Model(value, layers.Dense(3, activation="softmax")(hidden))


def several() -> keras.Model:
    """Two inputs and three outputs whose names sort otherwise than the model orders them; two share a layer."""
    left, right = keras.Input((4,), name="zebra"), keras.Input((3,), name="ant", dtype="int32")
    mixed = layers.Concatenate()([left, layers.Embedding(7, 2, name="table")(right)[:, 0]])
    twin = layers.Dense(2, name="middle")
    return keras.Model(
        [left, right], [layers.Dense(2, name="yak")(mixed), layers.Dense(3, name="bee")(mixed), twin(left)]
    )


def by_name() -> keras.Model:
    """Inputs and outputs as dictionaries."""
    inputs = {"b": keras.Input((2,), name="b"), "a": keras.Input((3,), name="a")}
    joined = layers.Concatenate()([inputs["b"], inputs["a"]])
    return keras.Model(inputs, {"y": layers.Dense(2, name="y")(joined), "x": layers.Dense(4, name="x")(joined)})


def recurrent(kind: str, **options: object) -> keras.Model:
    value = keras.Input((6, 4), name="series")
    hidden = getattr(layers, kind)(5, name="memory", **options)(value)
    return keras.Model(value, layers.Dense(2, name="forecast")(hidden))


def states() -> keras.Model:
    """One layer with three outputs."""
    value = keras.Input((6, 4), name="series")
    return keras.Model(value, layers.LSTM(5, return_state=True, name="memory")(value))


@keras.saving.register_keras_serializable()
def approximate_gelu(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=True)


def transformer() -> keras.Model:
    """Token ids of any length."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    hidden = layers.Embedding(11, 8, name="embedding")(tokens)
    attended = layers.MultiHeadAttention(2, 4, name="attention")(hidden, hidden)
    hidden = layers.LayerNormalization(name="norm")(layers.Add(name="residual")([hidden, attended]))
    hidden = layers.Dense(8, activation=approximate_gelu, name="feed")(hidden)
    return keras.Model(tokens, layers.Dense(11, name="logits")(hidden))


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="picture"),
            layers.Conv2D(2, 3, name="conv"),
            layers.Flatten(),
            layers.Dense(3, name="score"),
        ]
    )


def nested() -> keras.Model:
    """A model within a model, with an exact GELU inside."""
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="gelu", name="gate")], name="tower")
    value = keras.Input((6,), name="features")
    return keras.Model(value, layers.Dense(2, name="score")(inner(value)))


def preprocessing() -> keras.Model:
    """What layers of Keras's own do to raw pixels, by constants that are no weights, some of them long."""
    statistics = {"mean": [0.4, 0.3, 0.2], "variance": [0.2, 0.1, 0.3]}
    picture = keras.Input((8, 8, 3), name="picture")
    hidden = layers.Normalization(**statistics)(layers.Rescaling(1 / 255)(picture))
    hidden = layers.RandomFlip()(layers.CenterCrop(6, 6)(hidden))
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(size=(50, 6 * 6 * 3)).astype(np.float32))
    return keras.Model(picture, layers.Dense(3, name="score")(adapted(layers.Flatten()(hidden))))


MODELS = {
    "dense": dense,
    "several": several,
    "by_name": by_name,
    "lstm": lambda: recurrent("LSTM"),
    "gru": lambda: recurrent("GRU"),
    "states": states,
    "transformer": transformer,
    "sequential": sequential,
    "preprocessing": preprocessing,
}
