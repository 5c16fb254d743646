"""model_warmup: requests that are run at load, before anybody calls the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from inferd_protocol import model_config_pb2 as pb
from inferd_protocol.datatypes import BF16, BY_CONFIG, BYTES, Datatype
from inferd_protocol.tensors import Tensor, TensorError, bf16_bits, decode_raw

from inferd_server.errors import LoadError, ServerError
from inferd_server.repository.config.declared import DeclaredConfig, DeclaredSample, DeclaredWarmUp
from inferd_server.repository.config.files import plain_name
from inferd_server.repository.config.tensors import fits
from inferd_server.repository.config.values import data_type
from inferd_server.runtime.backend import RuntimeModel, TensorSpec

_FOLDER = "warmup"
"""In the model's folder, as Triton has it."""


def declared(source: str, samples: Sequence[pb.ModelWarmup], folder: Path) -> tuple[DeclaredWarmUp, ...]:
    """The requests as they are declared. Raises LoadError where one makes no sense whatever the model."""
    return tuple(
        DeclaredWarmUp(
            name=sample.name,
            batch_size=sample.batch_size or 1,
            count=sample.count or 1,
            inputs={
                name: _sample(f"{_where(source, sample.name)} has input '{name}' with", source, each, folder)
                for name, each in sample.inputs.items()
            },
        )
        for sample in samples
    )


def run(model: RuntimeModel, config: DeclaredConfig, max_batch_size: int) -> None:
    """Runs what is declared. Raises LoadError where a request does not fit the model, or its run fails."""
    for sample in config.warm_ups:
        where = _where(config.source, sample.name)
        if sample.batch_size > max(1, max_batch_size):
            raise LoadError(
                f"{where} says batch_size: {sample.batch_size}, expected at most {max(1, max_batch_size)}"
                + ("" if max_batch_size else ", as the model is not batched")
            )
        names = [spec.name for spec in model.signature.inputs]
        if sorted(names) != sorted(sample.inputs):
            raise LoadError(f"{where} has inputs {sorted(sample.inputs)}, the model has {sorted(names)}")
        rows = sample.batch_size if max_batch_size else 0
        inputs = [_tensor(where, spec, sample.inputs[spec.name], rows) for spec in model.signature.inputs]
        for _ in range(sample.count):
            try:
                model.run(inputs)
            except ServerError as error:
                raise LoadError(f"{where} fails: {error}") from error


def _where(source: str, name: str) -> str:
    return f"{source}, model_warmup '{name}'"


def _sample(what: str, source: str, sample: pb.ModelWarmup.Input, folder: Path) -> DeclaredSample:
    config_type = data_type(what, sample.data_type)
    dims = tuple(sample.dims)
    if any(size < 1 for size in dims):
        raise LoadError(f"{what} dims {list(dims)}: expected sizes from 1")
    kind = sample.WhichOneof("input_data_type")
    if kind is None or not getattr(sample, kind):
        raise LoadError(f"{what} no data: expected zero_data: true, random_data: true or an input_data_file")
    if kind != "input_data_file":
        return DeclaredSample(config_type, dims, random=kind == "random_data")
    return DeclaredSample(config_type, dims, file=folder / _FOLDER / plain_name(source, kind, sample.input_data_file))


def _tensor(where: str, spec: TensorSpec, sample: DeclaredSample, rows: int) -> Tensor:
    """One row, repeated `rows` times along a first axis; as it is where `rows` is 0."""
    datatype = BY_CONFIG[sample.config_type]
    if datatype is not spec.datatype:
        raise LoadError(
            f"{where} has input '{spec.name}' as {sample.config_type}, the model has {spec.datatype.config}"
        )
    shape = spec.shape[1:] if rows else spec.shape
    if not fits(shape, sample.dims):
        expected = [dim if isinstance(dim, int) else -1 for dim in shape]
        raise LoadError(
            f"{where} has input '{spec.name}' with dims {list(sample.dims)}, the model has {expected}"
            + (" (without the batch axis)" if rows else "")
        )
    if sample.file is not None:
        row = _read(where, spec, sample, sample.file)
    elif sample.random:
        row = _random(datatype, sample.dims)
    else:
        row = np.full(sample.dims, b"", object) if datatype is BYTES else np.zeros(sample.dims, datatype.numpy)
    return np.repeat(row[np.newaxis], rows, axis=0) if rows else row


def _read(where: str, spec: TensorSpec, sample: DeclaredSample, file: Path) -> Tensor:
    try:
        content = file.read_bytes()
        return decode_raw(spec.name, spec.datatype, sample.dims, content)
    except OSError as error:
        # The reason travels to callers, whom the server's folders do not concern.
        raise LoadError(f"{where} has input_data_file '{file.name}', which cannot be read: {error.strerror}") from error
    except TensorError as error:
        raise LoadError(f"{where} has input_data_file '{file.name}', which does not fit: {error}") from error


def _random(datatype: Datatype, dims: tuple[int, ...]) -> Tensor:
    random = np.random.default_rng(seed=1)
    if datatype is BYTES:
        digits = [str(number).encode() for number in random.integers(0, 128, math.prod(dims))]
        return np.array(digits, object).reshape(dims)
    if datatype is BF16:
        return bf16_bits(random.random(dims, np.float32))
    if datatype.numpy.kind == "f":
        return np.asarray(random.random(dims), datatype.numpy)
    return np.asarray(random.integers(0, 2 if datatype.numpy.kind == "b" else 128, dims), datatype.numpy)
