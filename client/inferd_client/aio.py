"""The awaiting client: carries out the core's steps on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy.typing as npt

from inferd_client.channel import DEFAULT_MAX_MESSAGE_BYTES, AsyncChannel, AsyncTransport, Connection, Tls
from inferd_client.core import Call, Core, InferOptions, Step, Steps
from inferd_client.errors import InferdError, InvalidInput
from inferd_client.metadata import ModelMetadata, ServerMetadata
from inferd_client.model_statistics import ModelStatistics
from inferd_client.repository import ModelConfig, ModelIndex
from inferd_client.requests import ParameterValue
from inferd_client.results import InferResult
from inferd_client.retry import Retry

T = TypeVar("T")


class AsyncClient:
    """`Client` for asyncio: the same arguments, the same calls, awaited.

    It belongs to the event loop of its first call. Cancelling the task that awaits a call cancels the call.
    Use it in an `async with` statement, or close it.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 30.0,
        retry: Retry = Retry(),  # noqa: B008 - immutable
        tls: Tls | None = None,
        token: str | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        connection = Connection(target=target, tls=tls, token=token, max_message_bytes=max_message_bytes)
        self._transport: AsyncTransport = AsyncChannel(connection)
        self._core = Core(timeout=timeout, retry=retry, max_message_bytes=max_message_bytes)

    async def server_live(self, *, timeout: float | None = None) -> bool:
        """See Client.server_live."""
        return await self._run(self._core.server_live(timeout))

    async def server_ready(self, *, timeout: float | None = None) -> bool:
        """See Client.server_ready."""
        return await self._run(self._core.server_ready(timeout))

    async def model_ready(self, model: str, version: str = "", *, timeout: float | None = None) -> bool:
        """See Client.model_ready."""
        return await self._run(self._core.model_ready(model, version, timeout))

    async def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """See Client.server_metadata."""
        return await self._run(self._core.server_metadata(timeout))

    async def model_metadata(self, model: str, version: str = "", *, timeout: float | None = None) -> ModelMetadata:
        """See Client.model_metadata."""
        return await self._run(self._core.model_metadata(model, version, timeout))

    async def model_config(self, name: str, version: str = "", *, timeout: float | None = None) -> ModelConfig:
        """See Client.model_config."""
        return await self._run(self._core.model_config(name, version, timeout))

    async def statistics(
        self, name: str = "", version: str = "", *, timeout: float | None = None
    ) -> tuple[ModelStatistics, ...]:
        """See Client.statistics."""
        return await self._run(self._core.statistics(name, version, timeout))

    async def repository_index(self, ready: bool = False, *, timeout: float | None = None) -> tuple[ModelIndex, ...]:
        """See Client.repository_index."""
        return await self._run(self._core.repository_index(ready, timeout))

    async def load_model(
        self,
        name: str,
        *,
        config: Mapping[str, Any] | str | None = None,
        files: Mapping[str, bytes] | None = None,
        labels: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> None:
        """See Client.load_model."""
        await self._run(self._core.load_model(name, config, files, labels, timeout))

    async def unload_model(self, name: str, *, unload_dependents: bool = False, timeout: float | None = None) -> None:
        """See Client.unload_model."""
        await self._run(self._core.unload_model(name, unload_dependents, timeout))

    async def set_label(self, name: str, label: str, version: int, *, timeout: float | None = None) -> None:
        """See Client.set_label."""
        await self._run(self._core.load_model(name, None, None, {label: version}, timeout))

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        request_id: str = "",
        parameters: Mapping[str, ParameterValue] | None = None,
        timeout: float | None = None,
        classification: Mapping[str, int] | None = None,
    ) -> InferResult:
        """Runs a model on arrays by input name and returns arrays by output name: see Client.infer."""
        arguments = (model, inputs, outputs, version, request_id, parameters, timeout, classification)
        prepared = self._core.prepare(arguments)
        if prepared is None:
            return await self._run(self._core.complete(arguments))
        kind, request, seconds, deadline = prepared
        try:
            answer = await self._transport.call("ModelInfer", request, seconds)
        except InferdError as error:
            failure = error
        else:
            return kind.read(answer)
        return await self._run(self._core.complete(arguments, deadline, failure))

    def infer_many(
        self,
        model: str,
        batches: Iterable[Mapping[str, npt.ArrayLike]] | AsyncIterable[Mapping[str, npt.ArrayLike]],
        *,
        concurrency: int = 4,
        **options: Unpack[InferOptions],
    ) -> AsyncIterator[InferResult]:
        """Runs a model on one batch after the other and yields the results in order: see Client.infer_many.

        Close the iterator (`contextlib.aclosing`) if it is left before its end, so that what is in flight is
        cancelled then.
        """
        if concurrency < 1:
            raise InvalidInput(f"concurrency is 1 or more, got {concurrency}")
        return self._pipeline(model, batches, concurrency, options)

    async def close(self) -> None:
        """Closes the connection; calls under way end in Cancelled, later ones in ClientClosed. Again: does nothing."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _pipeline(
        self,
        model: str,
        batches: Iterable[Mapping[str, npt.ArrayLike]] | AsyncIterable[Mapping[str, npt.ArrayLike]],
        concurrency: int,
        options: InferOptions,
    ) -> AsyncIterator[InferResult]:
        # Fetched first: otherwise each of the first requests would fetch it.
        await self.model_metadata(model, options.get("version", ""), timeout=options.get("timeout"))
        running: deque[asyncio.Task[InferResult]] = deque()
        try:
            async for inputs in _each(batches):
                if len(running) == concurrency:
                    yield await running[0]
                    running.popleft()
                running.append(asyncio.create_task(self.infer(model, inputs, **options)))
            while running:
                yield await running[0]
                running.popleft()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    value = await self._perform(step)
                except InferdError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(value)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _perform(self, step: Step) -> bytes:
        if isinstance(step, Call):
            return await self._transport.call(step.method, step.request, step.timeout)
        await asyncio.sleep(step.seconds)
        return b""


async def _each(batches: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(batches, AsyncIterable):
        async for batch in batches:
            yield batch
    else:
        for batch in batches:
            yield batch
