"""A model under the shapes that its config.pbtxt declares."""

from __future__ import annotations

from collections.abc import Sequence

from inferd_protocol.tensors import Tensor

from inferd_server.errors import RuntimeFailure
from inferd_server.repository.config.declared import DeclaredConfig, DeclaredTensor
from inferd_server.repository.config.tensors import client_signature
from inferd_server.runtime.backend import Dim, RuntimeModel, Signature


class ShapedModel:
    """A RuntimeModel that takes and gives what clients see, and reshapes between them and the model, without copies."""

    def __init__(self, model: RuntimeModel, signature: Signature, declared: DeclaredConfig) -> None:
        self.signature = signature
        self.provider = model.provider
        self.tuned = model.tuned
        self._model = model
        self._batched = bool(declared.max_batch_size)
        input_shapes = _own_shapes(declared.inputs)
        self._inputs = [
            (place, input_shapes[spec.name]) for place, spec in enumerate(signature.inputs) if spec.name in input_shapes
        ]
        output_shapes = _own_shapes(declared.outputs)
        self._outputs = [
            (place, spec.name, output_shapes.get(spec.name), self._row(spec.shape))
            for place, (spec, own) in enumerate(zip(signature.outputs, model.signature.outputs, strict=True))
            if spec != own
        ]

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the model. Raises as RuntimeModel.run does, and RuntimeFailure for an output of another size."""
        outputs = self._model.run(self._own(inputs))
        for place, name, own, wanted in self._outputs:
            expected = wanted if own is None else own
            row = outputs[place].shape[1:] if self._batched else outputs[place].shape
            if len(row) != len(expected) or any(size not in (-1, got) for size, got in zip(expected, row, strict=True)):
                raise RuntimeFailure(
                    f"output '{name}' has shape {list(row)}, its configuration says {list(expected)}"
                    + (" (without the batch axis)" if self._batched else "")
                )
            if own is not None:
                outputs[place] = self._reshape(outputs[place], wanted)
        return outputs

    def prepare(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """Prepares the model. `samples` are of the shapes that clients see."""
        self._model.prepare([self._own(inputs) for inputs in samples])
        self.tuned = self._model.tuned

    def close(self) -> None:
        """Frees the model."""
        self._model.close()

    def _own(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        arrays = list(inputs)
        for place, shape in self._inputs:
            arrays[place] = self._reshape(arrays[place], shape)
        return arrays

    def _reshape(self, array: Tensor, shape: tuple[int, ...]) -> Tensor:
        return array.reshape((len(array), *shape) if self._batched else shape)

    def _row(self, shape: Sequence[Dim]) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in (shape[1:] if self._batched else shape))


def shape(model: RuntimeModel, declared: DeclaredConfig) -> RuntimeModel:
    """The model as clients see it: itself, unless other shapes are declared.

    Raises LoadError where what is declared contradicts the model.
    """
    signature = client_signature(model.signature, declared)
    return model if signature == model.signature else ShapedModel(model, signature, declared)


def _own_shapes(tensors: Sequence[DeclaredTensor]) -> dict[str, tuple[int, ...]]:
    """The model's shapes of the tensors that are reshaped, without the batch axis."""
    return {tensor.name: tensor.reshape for tensor in tensors if tensor.reshape is not None}
