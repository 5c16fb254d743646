"""Declared inputs and outputs, held against those that the model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inferd_protocol.datatypes import BY_CONFIG

from inferd_server.errors import LoadError
from inferd_server.repository.config.declared import DeclaredConfig, DeclaredTensor
from inferd_server.runtime.backend import Dim, Signature, TensorSpec


def has_batch_axis(signature: Signature) -> bool:
    """Whether axis 0 of every input and output may be of any size, and of the same: the shape of a batch axis."""
    specs = (*signature.inputs, *signature.outputs)
    if not signature.inputs or not all(spec.shape and not isinstance(spec.shape[0], int) for spec in specs):
        return False
    # Converters do not carry the name through to every output, but inputs of different names are different axes.
    return len({spec.shape[0] for spec in signature.inputs}) == 1


def why_not_batchable(signature: Signature) -> str:
    """Why the model cannot be batched, and what to do."""
    for spec in (*signature.inputs, *signature.outputs):
        if not spec.shape:
            return f"'{spec.name}' is a scalar: it has no batch axis"
        if isinstance(spec.shape[0], int):
            return f"axis 0 of '{spec.name}' is fixed at {spec.shape[0]}: export with a dynamic batch"
    names = {spec.shape[0] for spec in signature.inputs}
    if len(names) > 1:
        return f"axis 0 of the inputs has different names {sorted(map(str, names))}: export with one batch axis"
    return "its rows are not independent of each other: axis 0 is no batch axis"


def client_signature(signature: Signature, declared: DeclaredConfig) -> Signature:
    """The inputs and outputs as clients see them: the model's, with the shapes that are declared.

    Raises LoadError where what is declared contradicts the model.
    """
    batched = bool(declared.max_batch_size)
    if batched and not has_batch_axis(signature):
        raise LoadError(
            f"{declared.source} says max_batch_size: {declared.max_batch_size}, but {why_not_batchable(signature)}"
        )
    return replace(
        signature,
        inputs=_apply(declared.source, "input", signature.inputs, declared.inputs, batched=batched),
        outputs=_apply(declared.source, "output", signature.outputs, declared.outputs, batched=batched),
    )


def fits(shape: Sequence[Dim], dims: Sequence[int]) -> bool:
    """Whether `dims`, with -1 for any size, can be said of an axis of `shape` each."""
    return len(shape) == len(dims) and all(
        not isinstance(dim, int) or size in (-1, dim) for dim, size in zip(shape, dims, strict=True)
    )


def _apply(
    source: str, kind: str, specs: Sequence[TensorSpec], tensors: Sequence[DeclaredTensor], *, batched: bool
) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in specs}
    for tensor in tensors:
        spec = by_name.get(tensor.name)
        if spec is None:
            raise LoadError(f"{source} declares {kind} '{tensor.name}', the model has {sorted(by_name)}")
        if tensor.config_type:
            by_name[tensor.name] = _declared(source, kind, spec, tensor, batched=batched)
    return tuple(by_name[spec.name] for spec in specs)


def _declared(source: str, kind: str, spec: TensorSpec, tensor: DeclaredTensor, *, batched: bool) -> TensorSpec:
    what = f"{source} declares {kind} '{tensor.name}'"
    if BY_CONFIG[tensor.config_type] is not spec.datatype:
        raise LoadError(f"{what} as {tensor.config_type}, the model has {spec.datatype.config}")
    axes, shape = (spec.shape[:1], spec.shape[1:]) if batched else ((), spec.shape)
    of_model = tensor.dims if tensor.reshape is None else tensor.reshape
    if not fits(shape, of_model):
        field = "dims" if tensor.reshape is None else "reshape"
        model_dims = [dim if isinstance(dim, int) else -1 for dim in shape]
        without = " (without the batch axis)" if batched else ""
        raise LoadError(f"{what} with {field} {list(of_model)}, the model has {model_dims}{without}")
    if tensor.reshape is not None:
        return replace(spec, shape=(*axes, *(None if size == -1 else size for size in tensor.dims)))
    # A free axis keeps its name, and a fixed one that is declared as free its size.
    narrowed = (dim if size == -1 else size for dim, size in zip(shape, tensor.dims, strict=True))
    return replace(spec, shape=(*axes, *narrowed))
