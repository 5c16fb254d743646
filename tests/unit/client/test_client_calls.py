"""Both clients against a gRPC server in the same process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest
from inferd_client import NO_RETRY, AsyncClient, Client, Retry, errors
from inferd_protocol import grpc_service_pb2 as pb
from inferd_protocol.datatypes import BY_NAME
from stub_server import SECONDS, Held, StubServer, double, refuse

X = np.array([[1, 2]], np.float32)
AT_ONCE = Retry(initial=0, maximum=0)


def test_everything_once(stub: StubServer, connect: Callable[..., Any]) -> None:
    client = connect(stub.address)
    assert client.server_live() is True
    assert client.server_ready() is True
    assert client.model_ready("double", "1") is True
    server = client.server_metadata()
    assert (server.name, server.version, server.extensions) == ("stub", "1.0", ("classification",))
    model = client.model_metadata("double")
    assert (model.name, model.versions, model.platform, model.batched) == ("double", ("1",), "stub", True)
    assert [(t.name, t.datatype, t.shape) for t in model.inputs] == [("x", BY_NAME["FP32"], (-1, 2))]
    result = client.infer("double", {"x": X}, request_id="seven")
    np.testing.assert_array_equal(result["y"], X * 2)
    assert (result.model_name, result.model_version, result.id) == ("double", "1", "seven")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidInput),
        (grpc.StatusCode.NOT_FOUND, errors.ModelNotFound),
        (grpc.StatusCode.INTERNAL, errors.ServerFault),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unimplemented),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
    ],
)
def test_a_refusal_raises_its_error_with_the_servers_words(
    stub: StubServer, connect: Callable[..., Any], code: grpc.StatusCode, kind: type[errors.InferdError]
) -> None:
    stub.default["ModelInfer"] = refuse(code, "because")
    with pytest.raises(kind, match=r"^because$"):
        connect(stub.address, retry=NO_RETRY).infer("double", {"x": X})


def test_a_reason_in_the_trailing_metadata_is_read(stub: StubServer, connect: Callable[..., Any]) -> None:
    stub.default["ModelInfer"] = refuse(grpc.StatusCode.UNAVAILABLE, "the queue is full", "queue_full")
    with pytest.raises(errors.Overloaded, match="the queue is full"):
        connect(stub.address).infer("double", {"x": X})
    assert stub.names().count("ModelInfer") == 1


def test_draining_is_tried_again(stub: StubServer, connect: Callable[..., Any]) -> None:
    stub.script["ModelInfer"] = [refuse(grpc.StatusCode.UNAVAILABLE, "bye", "draining")] * 2
    np.testing.assert_array_equal(connect(stub.address, retry=AT_ONCE).infer("double", {"x": X})["y"], X * 2)
    assert stub.names() == ["ModelMetadata", "ModelInfer", "ModelInfer", "ModelInfer"]


def test_nobody_there(connect: Callable[..., Any]) -> None:
    client = connect("127.0.0.1:1", retry=NO_RETRY)
    assert client.server_live() is False
    with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1:1"):
        client.infer("double", {"x": X})


def test_the_timeout_ends_a_call(stub: StubServer, connect: Callable[..., Any]) -> None:
    held = Held()
    stub.default["ModelInfer"] = held
    try:
        with pytest.raises(errors.DeadlineExceeded) as caught:
            connect(stub.address).infer("double", {"x": X}, timeout=0.2)
        assert isinstance(caught.value, TimeoutError)
        assert held.cancelled.wait(SECONDS)
    finally:
        held.let_go()


def test_a_message_over_the_servers_limit_is_split(connect: Callable[..., Any]) -> None:
    server = StubServer(**{"grpc.max_receive_message_length": 1000}).start()
    try:
        rows = np.arange(1000, dtype=np.float32).reshape(500, 2)
        np.testing.assert_array_equal(connect(server.address).infer("double", {"x": rows})["y"], rows * 2)
    finally:
        server.stop()


def test_an_answer_over_this_clients_limit_is_split(stub: StubServer, connect: Callable[..., Any]) -> None:
    def tall(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        rows = request.inputs[0].shape[0]
        response = pb.ModelInferResponse(model_name="double", model_version="1")
        response.outputs.add(name="y", datatype="FP32", shape=[rows, 1000])
        response.raw_output_contents.append(bytes(rows * 4000))
        return response

    stub.default["ModelInfer"] = tall
    answer = connect(stub.address, max_message_bytes=10_000).infer("double", {"x": np.ones((7, 2), np.float32)})
    assert answer["y"].shape == (7, 1000)


def test_messages_larger_than_grpcs_default_pass(stub: StubServer, connect: Callable[..., Any]) -> None:
    rows = np.ones((1_000_000, 2), np.float32)
    assert connect(stub.address).infer("double", {"x": rows})["y"].shape == rows.shape
    assert stub.names() == ["ModelMetadata", "ModelInfer"]


def test_a_token_goes_out_with_every_call(stub: StubServer, connect: Callable[..., Any]) -> None:
    connect(stub.address, token="secret").infer("double", {"x": X})
    assert [sent["authorization"] for sent in stub.metadata] == ["Bearer secret"] * 2


def test_a_closed_client_says_so(stub: StubServer, connect: Callable[..., Any]) -> None:
    client = connect(stub.address)
    client.infer("double", {"x": X})
    client.close()
    client.close()
    with pytest.raises(errors.ClientClosed, match="is closed"):
        client.infer("double", {"x": X})
    with pytest.raises(errors.ClientClosed):
        client.server_live()


def first_answered(held: Held) -> Callable[..., Any]:
    """Answers the first of `batches` and holds the others: by content, because calls in flight overtake each other."""

    def handler(request: pb.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        is_first = request.raw_input_contents[0] == bytes(8)
        return (double if is_first else held)(request, context)

    return handler


def batches(count: int) -> Iterator[dict[str, np.ndarray]]:
    for number in range(count):
        yield {"x": np.full((1, 2), number, np.float32)}


@pytest.mark.parametrize("concurrency", [1, 3, 20])
def test_many_come_back_in_order(stub: StubServer, connect: Callable[..., Any], concurrency: int) -> None:
    stub.script["ModelInfer"] = [refuse(grpc.StatusCode.UNAVAILABLE, "bye", "draining")] * 3
    client = connect(stub.address, retry=AT_ONCE)
    results = list(client.infer_many("double", batches(10), concurrency=concurrency))
    assert [result["y"][0, 0] for result in results] == [2 * number for number in range(10)]
    assert stub.names().count("ModelMetadata") == 1


def test_none_is_none(stub: StubServer, connect: Callable[..., Any]) -> None:
    assert list(connect(stub.address).infer_many("double", [])) == []


def test_concurrency_is_checked(stub: StubServer, connect: Callable[..., Any]) -> None:
    with pytest.raises(errors.InvalidInput, match="concurrency"):
        connect(stub.address).infer_many("double", [], concurrency=0)


class TestPipeline:
    """What is particular to the blocking client's infer_many."""

    def test_it_keeps_so_many_in_flight_and_reads_no_further(self, stub: StubServer) -> None:
        taken = itertools.count()
        held = Held()
        stub.default["ModelInfer"] = held

        def endless() -> Iterator[dict[str, np.ndarray]]:
            while True:
                next(taken)
                yield {"x": X}

        with Client(stub.address) as client:
            results = client.infer_many("double", endless(), concurrency=3)
            first: list[Any] = []
            reader = threading.Thread(target=lambda: first.append(next(results)))
            reader.start()
            for _ in range(3):
                assert held.arrived.acquire(timeout=SECONDS)
            held.let_go()
            reader.join(SECONDS)
            np.testing.assert_array_equal(first[0]["y"], X * 2)
            results.close()
        # Three in flight, and a fourth that waited for the first to be done.
        assert next(taken) == 4

    def test_an_error_comes_in_its_place_and_the_rest_is_cancelled(self, stub: StubServer) -> None:
        held = Held()
        stub.script["ModelInfer"] = [double, refuse(grpc.StatusCode.INTERNAL, "broken"), held]
        try:
            with Client(stub.address) as client:
                results = client.infer_many("double", batches(3), concurrency=1)
                assert next(results)["y"][0, 0] == 0
                with pytest.raises(errors.ServerFault, match="broken"):
                    next(results)
                assert list(results) == []
        finally:
            held.let_go()

    def test_a_wrong_input_comes_in_its_place(self, stub: StubServer) -> None:
        with Client(stub.address) as client:
            results = client.infer_many("double", [{"x": X}, {"x": X.astype(complex)}], concurrency=4)
            assert next(results)["y"].shape == (1, 2)
            with pytest.raises(errors.InvalidInput, match="complex128"):
                next(results)

    def test_an_error_of_the_source_passes_and_cancels(self, stub: StubServer) -> None:
        held = Held()
        stub.default["ModelInfer"] = held

        def source() -> Iterator[dict[str, np.ndarray]]:
            yield {"x": X}
            assert held.arrived.acquire(timeout=SECONDS)
            raise RuntimeError("the disk is gone")

        try:
            with Client(stub.address) as client, pytest.raises(RuntimeError, match="the disk is gone"):
                next(client.infer_many("double", source()))
            assert held.cancelled.wait(SECONDS)
        finally:
            held.let_go()

    def test_dropping_the_iterator_cancels_what_is_in_flight(self, stub: StubServer) -> None:
        held = Held()
        stub.default["ModelInfer"] = first_answered(held)
        try:
            with Client(stub.address) as client:
                results = client.infer_many("double", batches(5), concurrency=2)
                next(results)
                assert held.arrived.acquire(timeout=SECONDS)
                del results
                gc.collect()
                assert held.cancelled.wait(SECONDS)
        finally:
            held.let_go()


class TestBlocking:
    def test_several_threads_share_a_client(self, stub: StubServer) -> None:
        wrong: list[Any] = []

        def work(client: Client, number: int) -> None:
            for rows in range(1, 20):
                array = np.full((rows, 2), number, np.float32)
                if not np.array_equal(client.infer("double", {"x": array})["y"], array * 2):
                    wrong.append(number)

        with Client(stub.address) as client:
            threads = [threading.Thread(target=work, args=(client, number)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(SECONDS)
        assert wrong == []

    def test_closing_ends_what_is_under_way(self, stub: StubServer) -> None:
        held = Held()
        stub.default["ModelInfer"] = held
        client = Client(stub.address)
        ended: list[Exception] = []

        def work() -> None:
            try:
                client.infer("double", {"x": X})
            except errors.InferdError as error:
                ended.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert held.arrived.acquire(timeout=SECONDS)
            client.close()
            thread.join(SECONDS)
            assert [type(error) for error in ended] == [errors.Cancelled]
        finally:
            held.let_go()


class TestAwaiting:
    @staticmethod
    def held(stub: StubServer) -> Held:
        held = Held()
        stub.default["ModelInfer"] = held
        return held

    @staticmethod
    async def arrived(held: Held) -> None:
        assert await asyncio.to_thread(held.arrived.acquire, timeout=SECONDS)

    def test_cancelling_the_task_cancels_the_call(self, stub: StubServer) -> None:
        held = self.held(stub)

        async def main() -> None:
            async with AsyncClient(stub.address) as client:
                task = asyncio.create_task(client.infer("double", {"x": X}))
                await self.arrived(held)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await asyncio.to_thread(held.cancelled.wait, SECONDS)

        try:
            asyncio.run(main())
        finally:
            held.let_go()

    def test_closing_ends_what_is_under_way(self, stub: StubServer) -> None:
        held = self.held(stub)

        async def main() -> None:
            client = AsyncClient(stub.address)
            task = asyncio.create_task(client.infer("double", {"x": X}))
            await self.arrived(held)
            await client.close()
            with pytest.raises(errors.Cancelled, match="closed under the call"):
                await task

        try:
            asyncio.run(main())
        finally:
            held.let_go()

    def test_leaving_the_iterator_cancels_what_is_in_flight(self, stub: StubServer) -> None:
        held = Held()
        stub.default["ModelInfer"] = first_answered(held)

        async def main() -> None:
            async with AsyncClient(stub.address) as client:
                async with aclosing(client.infer_many("double", batches(5), concurrency=2)) as results:
                    async for _ in results:
                        await self.arrived(held)
                        break
                assert await asyncio.to_thread(held.cancelled.wait, SECONDS)

        try:
            asyncio.run(main())
        finally:
            held.let_go()

    def test_batches_may_come_asynchronously(self, stub: StubServer) -> None:
        async def source() -> Any:
            for batch in batches(5):
                await asyncio.sleep(0)
                yield batch

        async def main() -> list[float]:
            async with AsyncClient(stub.address) as client:
                return [result["y"][0, 0] async for result in client.infer_many("double", source(), concurrency=2)]

        assert asyncio.run(main()) == [0, 2, 4, 6, 8]

    def test_closing_before_the_first_call(self, stub: StubServer) -> None:
        async def main() -> None:
            async with AsyncClient(stub.address):
                pass

        asyncio.run(main())


def test_an_interrupt_while_grpc_starts_a_call_does_not_make_closing_hang(
    stub: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Client(stub.address)
    client.infer("double", {"x": X})
    held = Held()
    stub.default["ModelInfer"] = held

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    # The call is sent, and then, before anybody watches it, comes the interrupt.
    monkeypatch.setattr("grpc._channel._run_channel_spin_thread", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(client.infer_many("double", [{"x": X}]))
        assert held.arrived.acquire(timeout=SECONDS)
        closing = threading.Thread(target=client.close, daemon=True)
        closing.start()
        closing.join(SECONDS)
        assert not closing.is_alive()
        assert held.cancelled.wait(SECONDS)
    finally:
        held.let_go()
