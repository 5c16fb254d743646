"""One inference: find the plan for the request's form, and hand the request to the batcher that follows it.

From `enqueue` on the batcher owns the request; the plan turns its outputs into an answer and completes the reply.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from inferd_server.core.caching import Keep, digest
from inferd_server.core.plan import Plan, make_plan
from inferd_server.errors import Draining, InvalidRequest, ModelNotFound, ModelNotReady
from inferd_server.observability.failures import reason_of
from inferd_server.observability.statistics import FailureCounts
from inferd_server.repository.manager import RepositoryManager
from inferd_server.request import InferenceRequest, Reply, RequestForm, SequenceRequest, SharedMemoryRequest
from inferd_server.scheduling.scheduler import Closed, Scheduler
from inferd_server.scheduling.work import Finish, Work

_MOST_PLANS = 4096
"""Forms that are remembered; callers of more start over, at the cost of making their plans again."""


class InferenceCore:
    """Answers inference requests from the models of a repository."""

    def __init__(self, repository: RepositoryManager, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._repository = repository
        self._clock_ns = clock_ns
        self._plans: dict[RequestForm, Plan] = {}
        self._generation = -1
        self.refusals = FailureCounts()
        """Requests that were refused before it was known which version they are for."""

    def infer(self, request: InferenceRequest, reply: Reply) -> None:
        """Starts an inference. The reply is completed later, from another thread, or at once where nothing has to run.

        Raises ServerError where the request is refused; the reply is then still the caller's.
        """
        batcher = self.accept(request, reply, self._clock_ns())
        if batcher is not None:
            batcher.start()

    def accept(self, request: InferenceRequest, reply: Reply, now_ns: int) -> Scheduler | None:
        """As `infer`, for callers with several requests at hand, who start the batchers once for all of them.

        Returns the batcher that has the request and is to be started, None where the reply is complete.
        """
        form = request.form
        plan = self._plan(form)
        contents = request.contents
        while True:
            ordered = contents
            if not plan.plain:
                if isinstance(request, SequenceRequest):
                    return self._accept_step(plan, request, reply, now_ns)
                if plan.order is not None:
                    ordered = [contents[place] for place in plan.order]
                if isinstance(request, SharedMemoryRequest):
                    plan = plan.into(request.places)
            if plan.rows == 0:
                work = Work((), 0, plan.layout, reply, plan.finish, now_ns)
                plan.servable.batcher.answer_without_run(work, functools.partial(plan.finish_without_rows, reply))
                return None
            expires_ns = now_ns + plan.timeout_ns if plan.timeout_ns else None
            batcher = plan.servable.batcher
            finish: Finish = plan.finish
            key = None if plan.cache is None else digest(plan.layout, plan.rows, ordered)
            if plan.cache is not None and key is not None:
                outputs = plan.cache.get(key)
                if outputs is not None:
                    hit = Work((), 0, plan.layout, reply, plan.finish, now_ns)
                    batcher.answer_without_run(hit, functools.partial(finish, reply, outputs))
                    return None
                finish = Keep(plan.cache, key, finish)
            try:
                batcher.enqueue(
                    Work(
                        ordered,
                        plan.rows,
                        plan.layout,
                        reply,
                        finish,
                        now_ns,
                        expires_ns,
                        request.nbytes,
                        form.priority,
                    )
                )
            except Closed:
                # Replaced or unloaded since it was found. What is in its place, if anything, is another one.
                closed, plan = plan.servable, self._plan(form)
                if plan.servable is closed:
                    raise Draining from None
                continue
            return batcher

    def _accept_step(self, plan: Plan, request: SequenceRequest, reply: Reply, now_ns: int) -> Scheduler:
        """Hands on a step of a sequence. What it gives depends on the steps before it, so no cache knows it."""
        form, contents = request.form, request.contents
        while True:
            sequences = plan.servable.sequences
            assert sequences is not None
            ordered = contents if plan.order is None else [contents[place] for place in plan.order]
            finish = plan.into(request.places).finish if request.places else plan.finish
            expires_ns = now_ns + plan.timeout_ns if plan.timeout_ns else None
            work = Work(
                ordered, plan.rows, plan.layout, reply, finish, now_ns, expires_ns, request.nbytes, form.priority
            )
            try:
                sequences.enqueue(work, request.step)
            except Closed:
                closed, plan = plan.servable, self._plan(form)
                if plan.servable is closed:
                    raise Draining from None
                continue
            return plan.servable.batcher

    def count_refusal(self, error: Exception, name: str, version: str, ns: int) -> None:
        """Counts a request that no batcher has taken, `ns` nanoseconds after it had come.

        With its version, where `name` and `version` lead to one that can be called, else with `refusals`.
        """
        try:
            failures = self._repository.find(name, version).batcher.statistics.failures
        except (InvalidRequest, ModelNotFound, ModelNotReady):
            failures = self.refusals
        failures.count(reason_of(error), ns)

    def _plan(self, form: RequestForm) -> Plan:
        generation = self._repository.generation
        if generation != self._generation or len(self._plans) >= _MOST_PLANS:
            # A new dictionary, not an emptied one: a thread that is between its look-up and its plan keeps the old.
            self._plans = {}
            self._generation = generation
        plans = self._plans
        plan = plans.get(form)
        if plan is None:
            plan = plans[form] = make_plan(self._repository.find(form.model_name, form.model_version), form)
        return plan
