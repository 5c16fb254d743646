"""What is known of a model's sequences before any begins: which tensors are the server's to fill in and to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from inferd_protocol.tensors import Tensor

from inferd_server.errors import InvalidRequest
from inferd_server.request import Content, SequenceStep
from inferd_server.runtime.backend import Signature
from inferd_server.scheduling.work import Layout, Work


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A state tensor: its places among the model's inputs and outputs, and what a sequence begins with.

    `initial` is the model's input for one request: of one row where the model is batched.
    """

    input: int
    output: int
    initial: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Flag:
    """A control input that says of each request whether it is the first or last of its sequence, or just that it is.

    `false` and `true` are the model's input for one request.
    """

    input: int
    kind: str
    """`start`, `end` or `ready`."""
    false: Tensor
    true: Tensor

    def value(self, step: SequenceStep) -> Tensor:
        """The input for a request."""
        on = {"start": step.start, "end": step.end, "ready": True}[self.kind]
        return self.true if on else self.false


@dataclass(frozen=True, slots=True, eq=False)
class CorrelationId:
    """A control input that says which sequence a request is of: an array of `shape`, an object array for text."""

    input: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    def check(self, sequence_id: int | str) -> None:
        """Raises InvalidRequest for an id that the input cannot hold."""
        if self.dtype.hasobject:
            if not isinstance(sequence_id, str):
                raise InvalidRequest(f"the model expects a sequence_id that is a string, got the number {sequence_id}")
        elif isinstance(sequence_id, str):
            raise InvalidRequest(f"the model expects a sequence_id that is a number, got the string '{sequence_id}'")
        elif sequence_id > (most := int(np.iinfo(self.dtype.str).max)):
            raise InvalidRequest(f"the model expects a sequence_id of at most {most}, got {sequence_id}")

    def value(self, step: SequenceStep) -> Tensor:
        """The input for a request, whose id is checked."""
        return np.full(self.shape, step.id.encode() if isinstance(step.id, str) else step.id, self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class SequenceModel:
    """How a model's sequences are kept.

    `inputs` and `outputs` are the places, among the model's, of those that callers see; `signature` is theirs.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    signature: Signature
    states: tuple[State, ...]
    flags: tuple[Flag, ...]
    ids: tuple[CorrelationId, ...]
    dtypes: tuple[np.dtype[np.generic], ...]
    """Of each of the model's inputs."""
    idle_ns: int
    """How long a sequence is kept that sends nothing."""
    max_sequences: int

    def begin(self) -> list[Tensor]:
        """What a sequence begins with. Shared, and only read."""
        return [state.initial for state in self.states]

    def inputs_of(self, work: Work, step: SequenceStep, state: Sequence[Tensor]) -> tuple[list[Content], Layout]:
        """A content for each of the model's inputs, and their layout, from what the caller sent and the state."""
        batched = work.layout.batched
        contents: dict[int, Content] = dict(zip(self.inputs, work.contents, strict=True))
        shapes = dict(zip(self.inputs, work.layout.row_shapes, strict=True))
        own = [(kept.input, array) for kept, array in zip(self.states, state, strict=True)]
        own += [(flag.input, flag.value(step)) for flag in self.flags]
        own += [(control.input, control.value(step)) for control in self.ids]
        for place, array in own:
            contents[place] = array
            shapes[place] = array.shape[1:] if batched else array.shape
        places = range(len(self.dtypes))
        layout = Layout.of(self.dtypes, [shapes[place] for place in places], batched=batched)
        return [contents[place] for place in places], layout

    def state_after(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The state that a run leaves, copied: the outputs are views of what the whole batch gave."""
        return [np.array(outputs[kept.output]) for kept in self.states]
