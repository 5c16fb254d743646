"""A sequence batcher over a model whose runs the test starts itself: no thread, no timing, only order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import json_format, text_format
from inferd_protocol import model_config_pb2
from inferd_protocol.datatypes import BY_NAME
from inferd_protocol.tensors import Tensor
from inferd_server.errors import (
    RuntimeFailure,
    ServerError,
)
from inferd_server.repository.model_config import ModelConfig, read_json, sequence_model
from inferd_server.request import Reply, SequenceStep
from inferd_server.runtime.backend import Dim, Signature, TensorSpec
from inferd_server.scheduling import sequence_batcher
from inferd_server.scheduling.dynamic_batcher import DynamicBatcher
from inferd_server.scheduling.request_queue import RequestQueue
from inferd_server.scheduling.sequence_batcher import SequenceBatcher
from inferd_server.scheduling.work import Finish, Layout, Work

FP32 = BY_NAME["FP32"]
LAYOUT = Layout.of([FP32.numpy], [(1,)], batched=True)
IDLE_NS = 1_000_000
SUM = 'state { input_name: "sum" output_name: "next_sum" data_type: TYPE_FP32 dims: [ 1 ] }'
CONTROLS = """
control_input { name: "start" control { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } }
control_input { name: "end" control { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } }
control_input { name: "ready" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ false, true ] } }
"""
BAD = -1.0
"""A value that the model fails on."""


def spec(name: str, datatype: str = "FP32", shape: tuple[Dim, ...] = ("batch", 1)) -> TensorSpec:
    return TensorSpec(name, BY_NAME[datatype], shape)


class Accumulator:
    """sum + x -> y and the next sum, in buffers that every run writes over. Fails on rows that are BAD."""

    signature = Signature((spec("sum"), spec("x")), (spec("y"), spec("next_sum")), {})
    provider = "test"

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self._buffers = {rows: np.empty((rows, 1), np.float32) for rows in range(1, 5)}

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        total, x = inputs
        self.runs.append(len(x))
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        if (x == BAD).any():
            raise RuntimeFailure("no")
        buffer = self._buffers[len(x)]
        np.add(total, x, out=buffer)
        return [buffer.copy(), buffer]

    def close(self) -> None:
        pass


class Recorder:
    """Keeps what it was given; y is the number of the run."""

    provider = "test"

    def __init__(self, *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = ()) -> None:
        self.signature = Signature((spec("x"), *inputs), (spec("y"), *outputs), {})
        self.given: list[dict[str, Tensor]] = []

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = dict(zip([spec.name for spec in self.signature.inputs], inputs, strict=True))
        self.given.append(given)
        outputs = [np.full((len(inputs[0]), 1), len(self.given), np.float32)]
        return outputs + [self.state(given) for _ in self.signature.outputs[1:]]

    def state(self, given: dict[str, Tensor]) -> Tensor:
        """One element longer than before, all of them x."""
        return np.repeat(given["x"], given["kept"].shape[1] + 1, axis=1)

    def close(self) -> None:
        pass


class Caller:
    def __init__(self, deadline_ns: int | None = None) -> None:
        self.deadline_ns = deadline_ns
        self.request_id = ""
        self.trace = None
        self.gone = False
        self.undeliverable: ServerError | None = None
        self.outcome: float | ServerError | None = None
        self.answered: Callable[[], None] = lambda: None

    def cancelled(self) -> bool:
        return self.gone

    def send(self, form: object, outputs: Sequence[Tensor]) -> ServerError | None:
        assert self.outcome is None, "completed twice"
        self.outcome = self.undeliverable or float(outputs[0][0, 0])
        self.answered()
        return self.undeliverable

    def fail(self, error: ServerError) -> None:
        assert self.outcome is None, "completed twice"
        self.outcome = error


def finish(reply: Reply, outputs: Sequence[Tensor]) -> ServerError | None:
    return reply.send(None, outputs)  # type: ignore[arg-type]


class Bench:
    """A front, its batcher and model, and a clock that stands still."""

    def __init__(
        self,
        model: Accumulator | Recorder | None = None,
        text: str = SUM,
        *,
        max_sequences: int = 100,
        max_size: int = 100,
        max_bytes: int = 10**6,
    ) -> None:
        self.model = model or Accumulator()
        self.now_ns = 0
        message = model_config_pb2.ModelConfig()
        text_format.Parse(f"sequence_batching {{ max_sequence_idle_microseconds: 1000 {text} }}", message)
        declared = read_json(json_format.MessageToJson(message), Path(), "m", "onnxruntime_onnx")
        config = ModelConfig(4, 4, max_size, max_bytes, 0, 1)
        sequences = sequence_model(self.model.signature, declared, config, max_sequences)
        assert sequences is not None
        self.batcher = DynamicBatcher(
            self.model,
            name="test",
            max_batch_size=4,
            instances=1,
            queue=RequestQueue(max_size, max_bytes),
            on_gone=sequence_batcher.gone,
            clock_ns=lambda: self.now_ns,
        )
        self.front = SequenceBatcher(self.batcher, sequences, model="m", clock_ns=lambda: self.now_ns)

    def bring(
        self,
        sequence: int | str,
        value: float,
        *,
        start: bool = False,
        end: bool = False,
        caller: Caller | None = None,
        expires_ns: int | None = None,
        finish: Finish = finish,
        nbytes: int = 0,
        priority: int = 0,
    ) -> Caller:
        caller = caller or Caller()
        array = np.array([[value]], np.float32)
        work = Work([array], 1, LAYOUT, caller, finish, self.now_ns, expires_ns, nbytes, priority)
        self.front.enqueue(work, SequenceStep(sequence, start, end))
        return caller

    def ask(self, sequence: int | str, value: float, *, start: bool = False, end: bool = False) -> object:
        """What a lone request gets."""
        caller = self.bring(sequence, value, start=start, end=end)
        self.run()
        return caller.outcome

    def run(self) -> None:
        self.batcher.run_here()

    @property
    def runs(self) -> list[int]:
        assert isinstance(self.model, Accumulator)
        return self.model.runs
