"""Servers that do nothing but answer, to tell what a transport costs: `python -m benchmarks.echo aio|front --port N`.

`aio` is a bare grpc.aio server, `front` a bare pygrpc-native front. Both answer as many bytes as one row
takes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from benchmarks.payload import PATH

ANSWER = b"x" * 82
_SWITCH_SECONDS = 0.0005
"""The two threads of the front hand the GIL over sooner than after Python's 5 ms."""


async def _aio(port: int) -> None:
    import grpc

    async def answer(_request: bytes, _context: object) -> bytes:
        return ANSWER

    _, service, method = PATH.split("/")
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def _front(port: int) -> None:
    from pygrpc_native import EVENT_CALL, NativeGrpcFront

    sys.setswitchinterval(_SWITCH_SECONDS)
    front = NativeGrpcFront(f"127.0.0.1:{port}", [(PATH, False)], io_threads=1)
    front.start()
    while (events := front.recv_batch(64)) is not None:
        for event in events:
            if event[0] == EVENT_CALL:
                front.respond(event[1], ANSWER)


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("aio", "front"))
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    if arguments.kind == "aio":
        asyncio.run(_aio(arguments.port))
    else:
        _front(arguments.port)


if __name__ == "__main__":
    _main()
