"""A stub server, and one suite over both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from inferd_client import AsyncClient, Client
from stub_server import StubServer


@pytest.fixture
def stub() -> Iterator[StubServer]:
    server = StubServer().start()
    yield server
    server.stop()


class Blocking:
    """The awaiting client, called as the blocking one is, on an event loop of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self.client = AsyncClient(*arguments, **options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)
        return lambda *arguments, **options: self._runner.run(self._await(method, arguments, options))

    def infer_many(self, *arguments: Any, **options: Any) -> Any:
        """All at once."""
        return iter(self._runner.run(self._collect(*arguments, **options)))

    def end(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()

    @staticmethod
    async def _await(method: Any, arguments: Any, options: Any) -> Any:
        return await method(*arguments, **options)

    async def _collect(self, *arguments: Any, **options: Any) -> list[Any]:
        return [result async for result in self.client.infer_many(*arguments, **options)]


@pytest.fixture(params=["blocking", "awaiting"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client, of the kind that the test runs with, which is closed at its end."""
    made: list[Any] = []

    def make(target: str, **options: Any) -> Any:
        client = Client(target, **options) if request.param == "blocking" else Blocking(target, **options)
        made.append(client)
        return client

    yield make
    for client in made:
        client.end() if isinstance(client, Blocking) else client.close()
