"""Keras models as the later stages see them: loaded, named inputs and outputs, predictions, layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from inferd_training.errors import ModelError
from inferd_training.families.family import Scaling

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by input or output name; axis 0 is the row."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A model's input or output: `shape` without the batch axis, None where free; `dtype` as Keras names it."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs, in the model's own order, under its layers' names, each name once."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def load(path: Path) -> keras.Model:
    """Loads a saved `.keras` file. Raises ModelError where it is missing, damaged, or needs code that is not loaded."""
    if not path.is_file():
        raise ModelError(f"{path} is not a file: give a model saved by Keras as .keras")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its layers raise; all of it means that the file cannot be used.
        raise ModelError(f"{path} cannot be loaded by Keras {keras.__version__}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The line of an exception's message that says most, or its type's name where it has no message."""
    lines = [_COLOURS.sub("", line).strip() for line in str(error).splitlines()]
    # Keras puts where it happened first, and what happened after it.
    telling = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return telling[0] if telling else type(error).__name__


_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def signature(model: keras.Model) -> Signature:
    """The names and shapes of a model's inputs and outputs, from its layers.

    An output is named after the layer that computes it; a layer's second and later outputs get _1, _2 and so on. Raises
    ModelError where the model was never built, or fixes the number of rows.
    """
    try:
        inputs, outputs = list(model.inputs or ()), list(model.outputs or ())
    except (AttributeError, ValueError) as error:
        raise ModelError(f"the model's inputs are not known ({first_line(error)}): {_BUILD}") from error
    if not inputs or not outputs:
        raise ModelError(f"the model's inputs are not known: {_BUILD}")
    names = _unique([tensor.name for tensor in inputs], taken=())
    output_names = _unique([tensor._keras_history.operation.name for tensor in outputs], taken=names)
    return Signature(
        tuple(_tensor(name, tensor, "input") for name, tensor in zip(names, inputs, strict=True)),
        tuple(_tensor(name, tensor, "output") for name, tensor in zip(output_names, outputs, strict=True)),
    )


_BUILD = "build it from keras.Input layers, with the functional or the sequential API, before saving it"


def call(model: keras.Model, tensors: list[Any]) -> list[Any]:
    """Applies the model, in inference mode, to its inputs in order; gives its outputs in order."""
    return list(keras.tree.flatten(model(_structured(model, tensors), training=False)))


def predict(
    model: keras.Model, raw: Arrays, batch: int, preprocessing: Mapping[str, Scaling]
) -> dict[str, NDArray[Any]]:
    """The model's outputs for raw inputs, by name, computed by Keras in batches of `batch` rows.

    Inputs named in `preprocessing` are scaled first, as the exported graph does.
    """
    described = signature(model)
    inputs = [
        preprocessing[tensor.name].apply(raw[tensor.name]) if tensor.name in preprocessing else raw[tensor.name]
        for tensor in described.inputs
    ]
    answer = model.predict(_structured(model, inputs), batch_size=batch, verbose=0)
    outputs = keras.tree.flatten(answer)
    return {tensor.name: np.asarray(array) for tensor, array in zip(described.outputs, outputs, strict=True)}


def layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Every layer, those inside nested models and layers too."""
    return list(model._flatten_layers(include_self=False, recursive=True))


def weight_bytes(model: keras.Model) -> int:
    """The size of the model's weights, in bytes."""
    return sum(map(bytes_of, model.weights))


def bytes_of(weight: keras.Variable) -> int:
    """The size of one of the model's weights, in bytes."""
    return int(math.prod(weight.shape) * tf.as_dtype(weight.dtype).size)


def layer_names(model: keras.Model) -> set[str]:
    """The names of the layers that compute something; a model within the model is not named."""
    return {layer.name for layer in layers(model) if not isinstance(layer, keras.Model)}


def probe(model: keras.Model) -> keras.Model | None:
    """A model with the same inputs that gives every layer's output, in the order of computation.

    None where the model is not a graph of layers. Each output is named after its layer.
    """
    if not isinstance(model, keras.Sequential | keras.src.models.functional.Functional):
        return None
    outputs = [
        output
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
        for output in keras.tree.flatten(layer.output)
    ]
    return keras.Model(model.inputs, outputs)


def index_limit(model: keras.Model, name: str, integer: bool) -> int | None:
    """The smallest table that input `name` may index (an Embedding's `input_dim`), None where it indexes none.

    A floating-point input counts where it feeds an Embedding directly; an integer input, where there is any Embedding.
    """
    (tensor,) = (tensor for tensor in model.inputs if tensor.name == name)
    embeddings = [layer for layer in layers(model) if isinstance(layer, keras.layers.Embedding)]
    direct = [layer for layer in embeddings if layer._inbound_nodes and _feeds(tensor, layer)]
    chosen: Iterable[Any] = direct or (embeddings if integer else ())
    return min((layer.input_dim for layer in chosen), default=None)


def _structured(model: keras.Model, flat: list[Any]) -> Any:
    """The inputs as the model was built to take them: alone, in a list, in a dictionary."""
    if isinstance(model, keras.Sequential):
        # It has one input, and no `input` attribute before its first call.
        (only,) = flat
        return only
    return keras.tree.pack_sequence_as(model.input, flat)


def _feeds(tensor: Any, layer: keras.layers.Layer) -> bool:
    return any(source is tensor for node in layer._inbound_nodes for source in node.input_tensors)


def _tensor(name: str, tensor: Any, kind: str) -> Tensor:
    shape = tuple(tensor.shape)
    if not shape:
        raise ModelError(f"the {kind} '{name}' is a scalar, where axis 0 must be the batch: give it one")
    if shape[0] is not None:
        raise ModelError(
            f"axis 0 of the {kind} '{name}' is fixed at {shape[0]}, where a free batch axis was expected: "
            "build the model with keras.Input(shape=...), not batch_shape or batch_size"
        )
    return Tensor(name, shape[1:], keras.backend.standardize_dtype(tensor.dtype))


def _unique(names: list[str], taken: Iterable[str]) -> list[str]:
    used = set(taken)
    unique = []
    for name in names:
        candidate, number = name, 0
        while candidate in used:
            number += 1
            candidate = f"{name}_{number}"
        used.add(candidate)
        unique.append(candidate)
    return unique
