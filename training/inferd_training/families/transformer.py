"""A small Transformer encoder over the bytes of a text (Vaswani et al. 2017, "Attention Is All You Need")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferd_training.data.kinds import LENGTH, PADDING, TEXT, VOCABULARY
from inferd_training.families.family import Family

if TYPE_CHECKING:
    import keras

WIDTH = 64
HEADS = 4
BLOCKS = 2


def _build(classes: int) -> keras.Model:
    # Here, so that the command line can list the families without loading TensorFlow.
    import keras
    from keras import layers, ops

    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    # Computed from the ids instead of by mask_zero, which would hide from the graph's reader what is masked where.
    real = ops.not_equal(tokens, PADDING)
    seen = ops.expand_dims(real, 1)
    hidden = layers.Embedding(VOCABULARY, WIDTH, name="embedding")(tokens)
    # Letters say little alone: each position begins as what five of them look like, as others begin with word pieces.
    hidden = layers.Conv1D(WIDTH, 5, padding="same", activation="relu", name="stem")(hidden)
    # A bias for each position and feature is a learned embedding of positions, in a layer that Keras has.
    hidden = layers.EinsumDense(
        "btd,de->bte", (LENGTH, WIDTH), bias_axes="te", bias_initializer="random_normal", name="position"
    )(hidden)
    for number in range(1, BLOCKS + 1):
        hidden = _block(hidden, seen, number)
    hidden = layers.LayerNormalization(name="norm")(hidden)
    weight = ops.expand_dims(ops.cast(real, "float32"), -1)
    # The mean over what is no padding. At least 1, for a text without any byte.
    total = ops.sum(hidden * weight, axis=1)
    pooled = total / ops.maximum(ops.sum(weight, axis=1), 1.0)
    probabilities = layers.Dense(classes, activation="softmax", name="probabilities")(pooled)
    return keras.Model(tokens, probabilities, name="transformer")


def _block(hidden: Any, seen: Any, number: int) -> Any:
    """One block, normalised before each half (Xiong et al. 2020), which needs no warm-up of the learning rate.

    `hidden` [batch, 128, width] float32; `seen` [batch, 1, 128] bool: the positions that may be attended to.
    """
    from keras import layers

    normal = layers.LayerNormalization(name=f"attention_norm{number}")(hidden)
    attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention{number}")
    hidden = layers.Add(name=f"attended{number}")([hidden, attention(normal, normal, attention_mask=seen)])
    normal = layers.LayerNormalization(name=f"forward_norm{number}")(hidden)
    # ReLU: exact GELU becomes an Erfc node, which no runtime has, and the tanh one several nodes where this is one.
    wide = layers.Dense(4 * WIDTH, activation="relu", name=f"widen{number}")(normal)
    narrow = layers.Dense(WIDTH, name=f"narrow{number}")(wide)
    return layers.Add(name=f"forwarded{number}")([hidden, narrow])


TRANSFORMER = Family(
    name="transformer",
    summary=f"bytes embedded in {WIDTH}, convolution 5, {BLOCKS} encoder blocks of {HEADS} heads, masked mean, softmax",
    kind=TEXT,
    build=_build,
    preprocessing={},
    epochs=4,
    batch_size=128,
    learning_rates={"adam": 3e-3, "sgd": 0.1},
)
