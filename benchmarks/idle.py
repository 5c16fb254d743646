"""Connections that are open and do nothing: `python -m benchmarks.idle host:port count`.

Each says HTTP/2's preface and takes the server's settings, as a client that has no call to make just now. Prints
`ready` when all are open, then keeps them until it is ended.
"""

from __future__ import annotations

import resource
import select
import socket
import sys

from benchmarks.http2 import frame, hello

_SETTINGS, _ACK = 4, 1


def raise_file_limit() -> None:
    """As many open files as the system lets this process have: the usual 1024 are too few for 1,000 connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _main() -> None:
    host, _, port = sys.argv[1].rpartition(":")
    raise_file_limit()
    poll = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(int(sys.argv[2])):
        sock = socket.create_connection((host, int(port)), timeout=20)
        sock.sendall(hello())
        if not sock.recv(65536):
            sys.exit(f"the server closed connection {len(sockets) + 1}")
        sock.sendall(frame(_SETTINGS, _ACK, 0))
        sockets[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for number, _ in poll.poll():
            if not sockets[number].recv(65536):
                sys.exit("the server closed an idle connection")


if __name__ == "__main__":
    _main()
