"""Holds a request against the model it is for: pure functions, whose errors name the tensor and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inferd_server.errors import InvalidRequest
from inferd_server.repository.model_config import ModelConfig, why_not_batchable
from inferd_server.request import RequestedOutput, TensorForm
from inferd_server.runtime.backend import Signature, TensorSpec
from inferd_server.scheduling.work import Layout


class Arranged(NamedTuple):
    """Where in the request the model's inputs are, in the model's order; their rows; and what they look like."""

    order: tuple[int, ...]
    rows: int
    layout: Layout


class Selection(NamedTuple):
    """An output to answer: its place among the model's outputs, and the classes to answer, 0 for the tensor itself."""

    place: int
    classification: int


def arrange(signature: Signature, config: ModelConfig, inputs: Sequence[TensorForm]) -> Arranged:
    """Checks names, datatypes and shapes, and finds the model's order of the inputs.

    Raises InvalidRequest.
    """
    _check_names(signature, inputs)
    places = {tensor.name: place for place, tensor in enumerate(inputs)}
    order: list[int] = []
    row_shapes: list[tuple[int, ...]] = []
    rows = None
    for spec in signature.inputs:
        place = places[spec.name]
        tensor = inputs[place]
        if tensor.datatype is not spec.datatype:
            raise InvalidRequest(
                f"input '{spec.name}' is expected to be {spec.datatype.name}, got {tensor.datatype.name}"
            )
        shape = tensor.shape
        if not spec.accepts(shape):
            raise InvalidRequest(_shape_error(signature, spec, shape))
        if config.batched:
            if rows is None:
                rows = shape[0]
            elif rows != shape[0]:
                raise InvalidRequest(
                    f"input '{spec.name}' has {shape[0]} rows, input '{signature.inputs[0].name}' has {rows}: "
                    "expected as many in each"
                )
            shape = shape[1:]
        order.append(place)
        row_shapes.append(shape)
    dtypes = [spec.datatype.numpy for spec in signature.inputs]
    layout = Layout.of(dtypes, row_shapes, batched=config.batched)
    if not config.batched:
        return Arranged(tuple(order), 1, layout)
    rows = rows or 0
    if rows > config.max_request_rows:
        raise InvalidRequest(
            f"the batch has {rows} rows, expected at most {config.max_request_rows}: send it in several requests"
        )
    return Arranged(tuple(order), rows, layout)


def select(signature: Signature, outputs: Sequence[RequestedOutput]) -> tuple[Selection, ...]:
    """The outputs to answer, in the order asked; every output, in the model's order, where none is named.

    Raises InvalidRequest.
    """
    if not outputs:
        return tuple(Selection(index, 0) for index in range(len(signature.outputs)))
    places = {spec.name: index for index, spec in enumerate(signature.outputs)}
    for output in outputs:
        if output.name not in places:
            raise InvalidRequest(f"output '{output.name}' is unknown: the model has {sorted(places)}")
    if len({output.name for output in outputs}) != len(outputs):
        raise InvalidRequest(f"an output is asked for twice: {[output.name for output in outputs]}")
    return tuple(Selection(places[output.name], output.classification) for output in outputs)


def _check_names(signature: Signature, inputs: Sequence[TensorForm]) -> None:
    """Raises InvalidRequest for the first input that is unknown, named twice or missing."""
    expected = [spec.name for spec in signature.inputs]
    seen: set[str] = set()
    for tensor in inputs:
        if tensor.name not in expected:
            raise InvalidRequest(f"input '{tensor.name}' is unknown: the model expects {expected}")
        if tensor.name in seen:
            raise InvalidRequest(f"input '{tensor.name}' comes twice: expected once")
        seen.add(tensor.name)
    for name in expected:
        if name not in seen:
            raise InvalidRequest(f"input '{name}' is missing: the model expects {expected}, got {sorted(seen)}")


def _shape_error(signature: Signature, spec: TensorSpec, shape: tuple[int, ...]) -> str:
    expected = spec.sizes
    message = f"input '{spec.name}' is expected to have shape {expected}, got {list(shape)}"
    if len(shape) == len(expected) and expected[:1] != [-1] and shape[1:] == tuple(expected[1:]):
        message += f": {why_not_batchable(signature)}"
    elif len(shape) == len(expected) - 1 and expected[:1] == [-1]:
        message += ": axis 0 is the batch axis, 1 for a single row"
    return message
