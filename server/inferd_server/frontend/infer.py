"""ModelInfer, the same for every transport: bytes and a way to answer in, everything else behind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from inferd_server.core.inference import InferenceCore
from inferd_server.frontend.access_log import AccessLog
from inferd_server.frontend.call import Call
from inferd_server.frontend.decoder import RequestDecoder, addressee
from inferd_server.scheduling.scheduler import Scheduler
from inferd_server.shared_memory.regions import Regions

if TYPE_CHECKING:
    from inferd_server.frontend.tracing import Traces


class InferEndpoint:
    """What every transport gives its ModelInfer calls to."""

    def __init__(
        self, core: InferenceCore, regions: Regions, access_log: AccessLog | None = None, traces: Traces | None = None
    ) -> None:
        self._core = core
        self._decoder = RequestDecoder(regions)
        self._access_log = access_log
        self._traces = traces
        self.reads_metadata = traces is not None
        """Whether calls are to bring their metadata along."""

    def accept(self, message: bytes, call: Call, now_ns: int) -> Scheduler | None:
        """Takes a call over, whose answer comes later and from another thread, or at once.

        Returns the batcher that is to be started for it, None where the call is complete.
        """
        try:
            request = self._decoder.decode(message)
            call.request_id = request.id
            if self._traces is not None:
                call.trace = self._traces.begin(call.metadata, request.form.model_name, request.id, now_ns)
            return self._core.accept(request, call, now_ns)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the caller gets a status
            self.refuse(error, message, call, now_ns)
            return None

    def refuse(self, error: Exception, message: bytes, call: Call, now_ns: int) -> None:
        """Counts a call that came at `now_ns` and that no batcher takes, and ends it."""
        name, version = addressee(message)
        ns = time.monotonic_ns() - now_ns
        self._core.count_refusal(error, name, version, ns)
        if self._access_log is not None:
            self._access_log.refused(call.request_id, name, version, error, ns)
        if self._traces is not None and call.trace is None:
            call.trace = self._traces.begin(call.metadata, name, call.request_id, now_ns)
        call.fail(error)
