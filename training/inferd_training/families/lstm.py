"""A recurrent network that reads a text byte by byte, from both ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferd_training.data.kinds import LENGTH, TEXT, VOCABULARY
from inferd_training.families.family import Family

if TYPE_CHECKING:
    import keras


def _build(classes: int) -> keras.Model:
    # Here, so that the command line can list the families without loading TensorFlow.
    import keras
    from keras import layers

    tokens = keras.Input((LENGTH,), dtype="int32", name="tokens")
    # No mask: with one, the layer becomes a Loop in ONNX, step by step; without, ONNX's own LSTM. It reads the padding.
    hidden = layers.Embedding(VOCABULARY, 64, name="embedding")(tokens)
    hidden = layers.Bidirectional(layers.LSTM(64, return_sequences=True, name="lstm"), name="bidirectional")(hidden)
    # What was seen anywhere counts, however much padding follows it.
    hidden = layers.GlobalMaxPooling1D(name="pool")(hidden)
    probabilities = layers.Dense(classes, activation="softmax", name="probabilities")(hidden)
    return keras.Model(tokens, probabilities, name="lstm")


LSTM = Family(
    name="lstm",
    summary="bytes embedded in 64, LSTM 64 in both directions, maximum over time, softmax",
    kind=TEXT,
    build=_build,
    preprocessing={},
    epochs=5,
    batch_size=128,
    learning_rates={"adam": 5e-3, "sgd": 0.1},
)
