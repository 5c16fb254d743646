"""A model on an NVIDIA GPU: on memory taken beforehand where its shapes allow that, else as the runtime passes it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import onnxruntime as ort
from inferd_protocol.tensors import Tensor

from inferd_server.errors import LoadError, RuntimeFailure
from inferd_server.runtime.bound import BoundRunner, run_options
from inferd_server.runtime.buckets import can_be_bound
from inferd_server.runtime.cuda_memory import CudaMemory, Memory
from inferd_server.runtime.launching import Launch, OneThread, here
from inferd_server.runtime.onnxruntime_model import OnnxRuntimeModel
from inferd_server.runtime.options import GpuOptions
from inferd_server.runtime.provider_options import NO_GRAPH

_LOG = logging.getLogger(__name__)


class GpuModel(OnnxRuntimeModel):
    """A session on a GPU. Until it is prepared, and for what does not fit, the runtime copies."""

    def __init__(
        self,
        session: ort.InferenceSession,
        provider: str,
        options: GpuOptions,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(session, provider)
        self._gpu = options
        self._memory = memory
        self._bound: BoundRunner | None = None
        self._run_options = run_options(NO_GRAPH if options.cuda_graphs else "", shrink=options.arena_shrinkage)
        self._launch: Launch = OneThread() if options.cuda_graphs else here

    def prepare(self, samples: Sequence[Sequence[Tensor]]) -> None:
        """Takes memory for every batch size up to the largest sample, and captures graphs where they are asked for.

        Without graphs a model that cannot have such memory is served all the same, more slowly, with a warning. Raises
        LoadError where graphs are asked for and cannot be captured.
        """
        session, graphs = self._session, self._gpu.cuda_graphs
        if session is None or not samples or not can_be_bound(self.signature):
            if graphs:
                _LOG.warning("no CUDA graphs: they need a batch axis and no other axis that varies")
            return
        rows = max(len(inputs[0]) for inputs in samples)
        shrink = self._gpu.arena_shrinkage
        try:
            memory = self._memory or CudaMemory()
            self._bound = BoundRunner(
                session, self.signature, memory, rows, launch=self._launch, graphs=graphs, shrink=shrink
            )
        except Exception as error:
            if graphs:
                raise LoadError(f"the model cannot be captured as CUDA graphs, see --cuda-graphs: {error}") from error
            _LOG.warning("runs go through pageable memory, and are slower: %s", error)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Runs the session; the GIL is released meanwhile. Raises as `RuntimeModel.run` says."""
        bound = self._bound
        if bound is None or not bound.fits(len(inputs[0])):
            return self._launch(functools.partial(super().run, inputs))
        try:
            return bound.run(inputs)
        except RuntimeFailure:
            raise
        except Exception as error:  # noqa: BLE001 - the runtime raises types of its own and RuntimeError
            _LOG.debug("a bound run failed, and is run again unbound: %s", error)
        # Bound runs do not say whether it is the inputs that are to blame, which their caller must be told.
        return self._launch(functools.partial(super().run, inputs))

    def close(self) -> None:
        """Frees the memory and the session."""
        bound, self._bound = self._bound, None
        if bound is not None:
            bound.close()
        super().close()
        if isinstance(self._launch, OneThread):
            self._launch.close()
