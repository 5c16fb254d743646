"""What is to be done with requests of one form: worked out once, followed by each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from inferd_protocol.datatypes import BYTES
from inferd_protocol.tensors import Tensor

from inferd_server.core import validation
from inferd_server.core.classification import classify
from inferd_server.core.validation import Selection
from inferd_server.errors import InvalidRequest, ServerError
from inferd_server.repository.response_cache import ServableCache
from inferd_server.repository.servable import Servable
from inferd_server.request import AnswerForm, Reply, RequestForm
from inferd_server.runtime.backend import Signature
from inferd_server.scheduling.work import Layout
from inferd_server.shared_memory.regions import Window


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How requests of a form are run by a version, and how their outputs are answered."""

    servable: Servable
    plain: bool
    """Whether the request has the model's order, no output goes to shared memory, and it is no step of a sequence."""
    order: tuple[int, ...] | None
    """For each of the model's inputs its place in the request; None where the request has the model's order."""
    rows: int
    layout: Layout
    selection: tuple[Selection, ...] | None
    """The outputs to answer; None for all of them as they are."""
    answer: AnswerForm
    timeout_ns: int
    """Longest wait in the queue; 0 for no limit."""
    cache: ServableCache | None
    """Where runs are looked up and kept; None where each request is to be run."""

    def finish(self, reply: Reply, outputs: Sequence[Tensor]) -> ServerError | None:
        """Answers a request with what its run gave: every output, in the model's order.

        Returns the error where the request was told one instead.
        """
        if self.selection is not None:
            try:
                outputs = [self._answer(outputs[place], place, count) for place, count in self.selection]
            except ServerError as error:
                reply.fail(error)
                return error
        return reply.send(self.answer, outputs)

    def into(self, places: tuple[Window | None, ...]) -> Plan:
        """The same for one request, whose outputs go to these places."""
        return replace(self, answer=replace(self.answer, places=places))

    def finish_without_rows(self, reply: Reply) -> ServerError | None:
        """Answers a request of zero rows, for which nothing runs. Returns what `finish` does.

        Raises InvalidRequest where only a run could tell the shapes of the outputs.
        """
        return self.finish(reply, _without_rows(self.servable.signature))

    def _answer(self, array: Tensor, place: int, count: int) -> Tensor:
        if not count:
            return array
        spec = self.servable.signature.outputs[place]
        labels = self.servable.labels.get(spec.name, ())
        batched = self.servable.config.batched
        return classify(spec.name, spec.datatype, array, count, labels, batched=batched)


def make_plan(servable: Servable, form: RequestForm) -> Plan:
    """Holds a form against the version that it calls.

    Raises InvalidRequest where it does not fit.
    """
    signature = servable.signature
    _check_sequence(servable, form)
    arranged = validation.arrange(signature, servable.config, form.inputs)
    if form.in_sequence and arranged.rows != 1:
        raise InvalidRequest(f"a request of a sequence is expected to have 1 row, got {arranged.rows}")
    selection = validation.select(signature, form.outputs)
    in_order = arranged.order == tuple(range(len(arranged.order)))
    everything = selection == validation.select(signature, ())
    outputs = tuple(
        (signature.outputs[place].name, BYTES if count else signature.outputs[place].datatype)
        for place, count in selection
    )
    return Plan(
        servable=servable,
        plain=in_order and not form.in_sequence and not any(output.in_shared_memory for output in form.outputs),
        order=None if in_order else arranged.order,
        rows=arranged.rows,
        layout=arranged.layout,
        selection=None if everything else selection,
        answer=AnswerForm(servable.name, str(servable.version), outputs),
        timeout_ns=servable.config.queue_timeout_us(form.timeout_us) * 1000,
        cache=None if form.in_sequence else servable.cache,
    )


def _check_sequence(servable: Servable, form: RequestForm) -> None:
    """Raises InvalidRequest for a step of a sequence to a model that keeps none, and for the opposite."""
    if form.in_sequence and servable.sequences is None:
        raise InvalidRequest(
            f"parameter 'sequence_id' asks for a sequence, and model '{servable.name}' keeps none: leave it out, or "
            "declare sequence_batching in the model's config.pbtxt"
        )
    if servable.sequences is not None and not form.in_sequence:
        raise InvalidRequest(
            f"inference request to model '{servable.name}' must specify a non-zero or non-empty correlation ID: "
            "the model keeps sequences, and expects the parameter 'sequence_id'"
        )


def _without_rows(signature: Signature) -> list[Tensor]:
    """The outputs of zero rows. Raises InvalidRequest where only a run could tell their shapes."""
    arrays: list[Tensor] = []
    for spec in signature.outputs:
        sizes = [dim for dim in spec.shape[1:] if isinstance(dim, int)]
        if len(sizes) != len(spec.shape) - 1:
            raise InvalidRequest(
                f"the batch has no rows, and the shape of output '{spec.name}' depends on them: expected at least one"
            )
        arrays.append(np.empty((0, *sizes), spec.datatype.numpy))
    return arrays
