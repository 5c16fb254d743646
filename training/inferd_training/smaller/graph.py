"""A Keras model as the calls that compute it, whatever API it was built with, and copies of it with other layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from inferd_training.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of an operation, which is a layer or one of `keras.ops`: symbolic tensors in and out."""

    operation: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


class Graph:
    """The calls of a model in the order of computation. A nested model is one call."""

    def __init__(self, model: keras.Model) -> None:
        """Raises ModelError for a model that is no graph of layers."""
        if not isinstance(model, keras.Sequential | keras.src.models.functional.Functional):
            raise ModelError(
                f"'{model.name}' is a {type(model).__name__}, where a graph of layers was expected: build the model "
                "with the functional or the sequential API"
            )
        # A Function knows the calls of this model; a layer itself also knows those of others that share it.
        by_depth = keras.Function(model.inputs, model.outputs)._nodes_by_depth
        self.calls = tuple(
            Call(node.operation, tuple(node.input_tensors), tuple(node.outputs))
            for depth in sorted(by_depth, reverse=True)
            for node in by_depth[depth]
            if not node.is_input
        )
        self._outputs = {id(tensor) for tensor in model.outputs}

    def readers(self, tensor: Any) -> list[Call]:
        """The calls that take a tensor."""
        return [call for call in self.calls if any(given is tensor for given in call.inputs)]

    def of(self, operation: Any) -> list[Call]:
        """The calls of one operation: several where its weights are shared."""
        return [call for call in self.calls if call.operation is operation]

    def is_output(self, tensor: Any) -> bool:
        """Whether the model gives a tensor to its caller."""
        return id(tensor) in self._outputs

    def layers(self) -> list[keras.layers.Layer]:
        """The layers that hold weights, each once, in the order of computation."""
        unique = {id(call.operation): call.operation for call in self.calls}
        return [layer for layer in unique.values() if isinstance(layer, keras.layers.Layer) and layer.weights]


def copy(
    model: keras.Model, replace: Callable[[keras.layers.Layer, dict[str, Any]], keras.layers.Layer | None]
) -> keras.Model:
    """A model of the same graph with fresh layers under the same names.

    `replace` gets each layer and its configuration, which it may change, and gives the layer to use, or None for one of
    the same kind. Weights are fresh, too.
    """

    def fresh(operation: Any) -> Any:
        if not isinstance(operation, keras.layers.Layer):
            # A bare operation holds nothing.
            return operation
        config = operation.get_config()
        return replace(operation, config) or type(operation).from_config(config)

    return keras.models.clone_model(model, clone_function=fresh)


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """Gives each layer of `target` the weights of the layer of that name in `source`, as many as it has itself."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights()[: len(layer.weights)])


def uncompiled(model: keras.Model) -> keras.Model:
    """The model without a loss, a metric or an optimizer's state."""
    fresh = type(model).from_config(model.get_config())
    fresh.set_weights(model.get_weights())
    return fresh
