"""The blocking client: carries out the core's steps, one after the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy.typing as npt

from inferd_client.channel import DEFAULT_MAX_MESSAGE_BYTES, Channel, Connection, Pending, Tls, Transport
from inferd_client.core import Call, Core, InferOptions, Step, Steps, Wait
from inferd_client.errors import InferdError, InvalidInput
from inferd_client.metadata import ModelMetadata, ServerMetadata
from inferd_client.model_statistics import ModelStatistics
from inferd_client.repository import ModelConfig, ModelIndex
from inferd_client.requests import ParameterValue
from inferd_client.results import InferResult
from inferd_client.retry import Retry

T = TypeVar("T")


class Client:
    """A client of one server, or of all the servers that its name resolves to. Make one and keep it.

    `target` is `host:port` (or one of gRPC's schemes). `timeout` is how long a call may take in seconds, retries
    included, unless the call says otherwise. `token` goes out with every call as a bearer token; give it together
    with `tls`, or whoever listens on the way can read it. Requests and answers may have `max_message_bytes` each; a
    larger batch is split.

    Safe to use from several threads. Use it in a `with` statement, or close it.

    Every call raises an InferdError (the tree is in `inferd_client.errors`), and nothing else, once it is under way.
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
        self._transport: Transport = Channel(connection)
        self._core = Core(timeout=timeout, retry=retry, max_message_bytes=max_message_bytes)

    def server_live(self, *, timeout: float | None = None) -> bool:
        """Whether a server is there. False, not an error, where none answers; there are no retries."""
        return self._run(self._core.server_live(timeout))

    def server_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server should be sent work. False, not an error, where none answers; there are no retries."""
        return self._run(self._core.server_ready(timeout))

    def model_ready(self, model: str, version: str = "", *, timeout: float | None = None) -> bool:
        """Whether a model, or a version of it, can be used. False where there is none, and where no server answers."""
        return self._run(self._core.model_ready(model, version, timeout))

    def server_metadata(self, *, timeout: float | None = None) -> ServerMetadata:
        """The server's name, version and extensions."""
        return self._run(self._core.server_metadata(timeout))

    def model_metadata(self, model: str, version: str = "", *, timeout: float | None = None) -> ModelMetadata:
        """A model's versions and tensors, asked anew.

        Raises ModelNotFound.
        """
        return self._run(self._core.model_metadata(model, version, timeout))

    def model_config(self, name: str, version: str = "", *, timeout: float | None = None) -> ModelConfig:
        """A model's configuration, with its version labels and its execution provider.

        `version` is a number, a label, or "" for the server's choice, as everywhere.
        Raises ModelNotFound.
        """
        return self._run(self._core.model_config(name, version, timeout))

    def statistics(
        self, name: str = "", version: str = "", *, timeout: float | None = None
    ) -> tuple[ModelStatistics, ...]:
        """What a version, a model's versions, or, without a name, all versions have done since they were loaded.

        Raises ModelNotFound.
        """
        return self._run(self._core.statistics(name, version, timeout))

    def repository_index(self, ready: bool = False, *, timeout: float | None = None) -> tuple[ModelIndex, ...]:
        """The versions of all models with their states, or those that are ready alone."""
        return self._run(self._core.repository_index(ready, timeout))

    def load_model(
        self,
        name: str,
        *,
        config: Mapping[str, Any] | str | None = None,
        files: Mapping[str, bytes] | None = None,
        labels: Mapping[str, int] | None = None,
        timeout: float | None = None,
    ) -> None:
        """Loads a model, or loads it anew; the versions before serve until it is ready.

        `config` takes the place of its config.pbtxt, as a mapping or as JSON text. `files`, by `<version>/<path>`
        (`1/model.onnx`), take the place of its folder, and need a config. `labels` are names for versions, callable
        wherever a version is: 0 removes one. With labels alone nothing is loaded. They are inferd's own.

        Loading takes its time: give a `timeout` to fit.
        Raises ModelNotFound, ControlOff (where the server does not load by request), and ServerFault or InvalidInput
        where the load fails.
        """
        self._run(self._core.load_model(name, config, files, labels, timeout))

    def unload_model(self, name: str, *, unload_dependents: bool = False, timeout: float | None = None) -> None:
        """Unloads a model, and with `unload_dependents` the models that it is made of.

        Raises ModelNotFound, and ControlOff where the server does not unload by request.
        """
        self._run(self._core.unload_model(name, unload_dependents, timeout))

    def set_label(self, name: str, label: str, version: int, *, timeout: float | None = None) -> None:
        """Gives a version a name that can be called in its place, or moves the name to it; 0 removes the name.

        Raises ModelNotFound, and ControlOff where the server changes nothing by request.
        """
        self._run(self._core.load_model(name, None, None, {label: version}, timeout))

    def infer(
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
        """Runs a model on arrays by input name and returns arrays by output name.

        `inputs` have the shapes of the model's metadata, batch axis included. Their dtypes are the model's or fit
        into them without loss; BF16 takes float32, BYTES takes arrays of `str` or `bytes`. What is no array is made
        one first. `outputs` are the names to answer, in that order; None is all. `version` is a number or a label such
        as "stable"; "" is the server's choice. `parameters` go out as they are; of the protocol's own, `timeout` is in
        microseconds, `priority` and `sequence_id` are integers. A request with a `sequence_id` is never sent twice.
        `classification` maps outputs to k: such an output is answered as the k best elements of each row, an array of
        BYTES `value:index[:label]` for `parse_classes`.

        The model's metadata is fetched once and remembered. A batch over the size limits is sent in several requests.

        Raises InvalidInput, ModelNotFound, MessageTooLarge (where the batch cannot be split), Overloaded,
        DeadlineExceeded and the rest of the tree in `inferd_client.errors`.
        """
        arguments = (model, inputs, outputs, version, request_id, parameters, timeout, classification)
        prepared = self._core.prepare(arguments)
        if prepared is None:
            return self._run(self._core.complete(arguments))
        kind, request, seconds, deadline = prepared
        try:
            answer = self._transport.call("ModelInfer", request, seconds)
        except InferdError as error:
            failure = error
        else:
            return kind.read(answer)
        return self._run(self._core.complete(arguments, deadline, failure))

    def infer_many(
        self,
        model: str,
        batches: Iterable[Mapping[str, npt.ArrayLike]],
        *,
        concurrency: int = 4,
        **options: Unpack[InferOptions],
    ) -> Iterator[InferResult]:
        """Runs a model on one batch after the other, several requests in flight, and yields the results in order.

        Takes from `batches` only as results are taken from it: at most `concurrency` requests and their answers are
        held. The options are those of `infer`. The first error ends it, in its place in the order. What is in flight
        is cancelled when it ends, and when the iterator is closed or dropped.
        """
        if concurrency < 1:
            raise InvalidInput(f"concurrency is 1 or more, got {concurrency}")
        return self._pipeline(model, batches, concurrency, options)

    def close(self) -> None:
        """Closes the connection; calls under way end in Cancelled, later ones in ClientClosed. Again: does nothing."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pipeline(
        self, model: str, batches: Iterable[Mapping[str, npt.ArrayLike]], concurrency: int, options: InferOptions
    ) -> Iterator[InferResult]:
        # Fetched first: otherwise each of the first requests would fetch it.
        self.model_metadata(model, options.get("version", ""), timeout=options.get("timeout"))
        running: deque[_Running] = deque()
        try:
            for inputs in batches:
                if len(running) == concurrency:
                    yield running.popleft().finish()
                running.append(_Running(self._transport, self._core.infer(model, inputs, **options)))
            while running:
                yield running.popleft().finish()
        finally:
            for unfinished in running:
                unfinished.cancel()

    def _run(self, steps: Steps[T]) -> T:
        return _drive(self._transport, steps, next(steps))


class _Running:
    """A request of a pipeline whose first call is under way; what may come after it is done in `finish`."""

    def __init__(self, transport: Transport, steps: Steps[InferResult]) -> None:
        self._transport = transport
        self._steps = steps
        self._call: Pending | InferdError
        try:
            step = next(steps)
            if not isinstance(step, Call):
                raise TypeError(f"a request begins with a call, not {step}")
            self._call = transport.start(step.method, step.request, step.timeout)
        except InferdError as error:
            # Kept for its turn: the results before it are still good.
            self._call = error

    def finish(self) -> InferResult:
        if isinstance(self._call, InferdError):
            raise self._call
        try:
            return _drive(self._transport, self._steps, self._call)
        finally:
            self._call.cancel()

    def cancel(self) -> None:
        self._steps.close()
        if not isinstance(self._call, InferdError):
            self._call.cancel()


def _drive(transport: Transport, steps: Steps[T], step: Step | Pending) -> T:
    """Carries out a call from its current step on, which may be under way already, and returns the call's result."""
    try:
        while True:
            try:
                if isinstance(step, Call):
                    value = transport.call(step.method, step.request, step.timeout)
                elif isinstance(step, Wait):
                    time.sleep(step.seconds)
                    value = b""
                else:
                    value = step.result()
            except InferdError as error:
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result
