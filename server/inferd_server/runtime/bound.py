"""Runs a session on memory that was taken beforehand: by batch size, pinned on the host, and on the device.

Each size has slots, one for each run that may go on at the same time. While one slot computes, others copy.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from inferd_protocol.tensors import Tensor
from numpy.typing import NDArray

from inferd_server.errors import LoadError, RuntimeFailure
from inferd_server.runtime.backend import Signature, TensorSpec
from inferd_server.runtime.buckets import bucket_of, bucket_sizes
from inferd_server.runtime.cuda_memory import Memory
from inferd_server.runtime.launching import Launch, here
from inferd_server.runtime.onnxruntime_model import UNLOADED
from inferd_server.runtime.provider_options import GRAPH_ID, SHRINK_ARENA

_CAPTURE_RUNS = 3
"""A graph is captured in the second or third run of its id: the runs before it take the memory that it needs."""

_GRAPH_SLOTS = 2
"""One is copied while the other runs. Further ones would have to be captured while others serve, and a capture fails
where any thread of the process takes memory on the device meanwhile."""


@dataclass(slots=True)
class _Buffer:
    """One tensor of a slot."""

    spec: TensorSpec
    row_bytes: int
    host: NDArray[np.uint8]
    array: Tensor
    """`host` as the tensor that it holds."""
    device: ort.OrtValue


class _Slot:
    """The memory of one run of up to `size` rows."""

    def __init__(
        self, session: ort.InferenceSession, signature: Signature, memory: Memory, size: int, graph: int
    ) -> None:
        self._memory = memory
        self._graph = graph
        self._session = session
        self._size = size
        self._dirty = 0
        """Rows that earlier runs have left in the inputs."""
        self._bound_rows = 0
        self.buffers: list[_Buffer] = []
        self._stream = memory.stream()
        try:
            self.inputs = [self._buffer(spec) for spec in signature.inputs]
            self._outputs = [self._buffer(spec) for spec in signature.outputs]
        except BaseException:
            self.close()
            raise
        self._binding = session.io_binding()

    def run(self, inputs: Sequence[Tensor], options: ort.RunOptions, launch: Launch) -> list[Tensor]:
        """Runs up to `size` rows. The session is run by `launch`."""
        rows = len(inputs[0])
        memory, stream = self._memory, self._stream
        # A captured graph has one shape: what is missing is filled with zeros, whose answers nobody reads.
        shape_rows = self._size if self._graph else rows
        for buffer, array in zip(self.inputs, inputs, strict=True):
            buffer.array[:rows] = array
            if self._graph and self._dirty > rows:
                # Not an earlier caller's rows, which might be what makes a run fail.
                buffer.array[rows : self._dirty] = 0
            memory.to_device(buffer.device.data_ptr(), buffer.host, shape_rows * buffer.row_bytes, stream)
        self._dirty = rows
        self._bind(shape_rows)
        memory.wait(stream)
        launch(lambda: self._session.run_with_iobinding(self._binding, options))
        for buffer in self._outputs:
            memory.to_host(buffer.host, buffer.device.data_ptr(), rows * buffer.row_bytes, stream)
        memory.wait(stream)
        # Copies: the buffers are the next run's.
        return [buffer.array[:rows].copy() for buffer in self._outputs]

    def close(self) -> None:
        """Gives the memory back."""
        for buffer in self.buffers:
            self._memory.free_host(buffer.host)
        self.buffers.clear()
        self._memory.free_stream(self._stream)

    def _bind(self, rows: int) -> None:
        if rows == self._bound_rows:
            return
        device = self._memory.device
        for buffer in self.inputs:
            shape = (rows, *buffer.array.shape[1:])
            self._binding.bind_input(
                buffer.spec.name, device, 0, buffer.array.dtype.type, shape, buffer.device.data_ptr()
            )
        for buffer in self._outputs:
            shape = (rows, *buffer.array.shape[1:])
            self._binding.bind_output(
                buffer.spec.name, device, 0, buffer.array.dtype.type, shape, buffer.device.data_ptr()
            )
        self._bound_rows = rows

    def _buffer(self, spec: TensorSpec) -> _Buffer:
        row = tuple(dim for dim in spec.shape[1:] if isinstance(dim, int))
        dtype, shape = spec.datatype.numpy, (self._size, *row)
        row_bytes = int(np.prod(row, dtype=np.int64)) * dtype.itemsize
        try:
            device = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, self._memory.device, 0)
        except Exception as error:
            raise LoadError(
                f"the device has no room for {self._size} rows of '{spec.name}': lower --max-batch-size ({error})"
            ) from error
        host = self._memory.host(self._size * row_bytes)
        host[:] = 0
        array = host[: self._size * row_bytes].view(dtype).reshape(shape)
        buffer = _Buffer(spec, row_bytes, host, array, device)
        self.buffers.append(buffer)
        return buffer


class BoundRunner:
    """Runs of a session up to `most_rows` rows, on memory taken beforehand.

    With `graphs` each slot of each size is captured as a graph of its own, whose addresses are the slot's, and runs of
    the session must be launched by one thread, one at a time. Raises LoadError where the device is full.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        signature: Signature,
        memory: Memory,
        most_rows: int,
        *,
        launch: Launch = here,
        graphs: bool,
        shrink: bool = False,
    ) -> None:
        self.sizes = bucket_sizes(most_rows)
        self._session = session
        self._signature = signature
        self._memory = memory
        self._graphs = graphs
        self._shrink = shrink
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)
        self._launch = launch
        self._closed = False
        self._idle: list[list[tuple[_Slot, ort.RunOptions]]] = [[] for _ in self.sizes]
        try:
            for place in range(len(self.sizes)):
                for _ in range(_GRAPH_SLOTS if graphs else 1):
                    self._idle[place].append(self._make(place))
        except BaseException:
            self.close()
            raise

    def fits(self, rows: int) -> bool:
        """Whether a run of so many rows has a size."""
        return bucket_of(self.sizes, rows) is not None

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs inputs that fit, and returns the outputs. Raises what the session raises."""
        place = bucket_of(self.sizes, len(inputs[0]))
        if place is None:
            raise ValueError(f"expected 1 to {self.sizes[-1]} rows, got {len(inputs[0])}")
        with self._lock:
            while self._graphs and not self._idle[place] and not self._closed:
                self._returned.wait()
            if self._closed:
                raise RuntimeFailure(UNLOADED)
            held = self._idle[place].pop() if self._idle[place] else None
        # As many as runs go on at once: instances of the model, no more.
        slot, options = held or self._make(place)
        try:
            return slot.run(inputs, options, self._launch)
        finally:
            self._give_back(place, slot, options)

    def close(self) -> None:
        """Gives the memory back, that of a run which still goes on when it ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, [[] for _ in self.sizes]
            self._returned.notify_all()
        for slots in idle:
            for slot, _ in slots:
                slot.close()

    def _give_back(self, place: int, slot: _Slot, options: ort.RunOptions) -> None:
        with self._lock:
            if not self._closed:
                self._idle[place].append((slot, options))
                self._returned.notify_all()
                return
        slot.close()

    def _make(self, place: int) -> tuple[_Slot, ort.RunOptions]:
        with self._lock:
            graph = next(self._ids) if self._graphs else 0
        slot = _Slot(self._session, self._signature, self._memory, self.sizes[place], graph)
        options = run_options(str(graph or ""), shrink=self._shrink)
        try:
            for _ in range(_CAPTURE_RUNS if graph else 0):
                slot.run([np.zeros_like(buffer.array) for buffer in slot.inputs], options, self._launch)
        except BaseException:
            slot.close()
            raise
        return slot, options


def run_options(graph: str, *, shrink: bool) -> ort.RunOptions:
    """Of a run: the graph that it is of, if any, and whether the arena gives its memory back afterwards."""
    options = ort.RunOptions()
    if graph:
        options.add_run_config_entry(GRAPH_ID, graph)
    if shrink:
        options.add_run_config_entry(SHRINK_ARENA, "gpu:0")
    return options
