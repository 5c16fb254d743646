"""The client's side of HTTP/2 and HTTP/1.1, as little as the open loop needs: small POSTs, their ends, their sizes.

A library would cost more time than the servers under test. Requests are written from prepared bytes; of responses only
the frame headers are read: an answer of the expected size is a success, and gRPC errors bring no data at all.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_FRAME = struct.Struct(">BHBBI")
_STREAM = struct.Struct(">I")
_STREAM_AT = 5
_SETTING = struct.Struct(">HI")
_MAX_STREAMS, _INITIAL_WINDOW = 3, 4
_MAX_FRAME = 16384
_WIDE = 2**31 - 1
_DEFAULT_WINDOW = 65535
_RENEW = 2**24


class ProtocolError(Exception):
    """The server closed the connection or a call on it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that has ended: `tag` is what it was sent with, `size` the bytes of its body."""

    tag: int
    size: int


class Connection(Protocol):
    """What the open loop needs of either protocol."""

    socket: socket.socket
    outgoing: bytearray

    def ready(self) -> bool:
        """Whether another request may be sent now."""
        ...

    def send(self, tag: int) -> None:
        """Puts a request into `outgoing`."""
        ...

    def receive(self, data: bytes) -> list[Answer]:
        """Takes bytes from the server. Raises ProtocolError where a request failed."""
        ...


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return _FRAME.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def hello() -> bytes:
    """What a client says first: the preface, and settings that leave flow control to nobody."""
    settings = _SETTING.pack(_INITIAL_WINDOW, _WIDE)
    widen = struct.pack(">I", _WIDE - _DEFAULT_WINDOW)
    return _PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, widen)


class Http2:
    """One connection on which the same POST is sent over and over, each time on a new stream."""

    def __init__(self, sock: socket.socket, authority: str, path: str, headers: Sequence[str], body: bytes) -> None:
        if len(body) > _DEFAULT_WINDOW:
            raise ProtocolError(
                f"expected a body within the initial window of {_DEFAULT_WINDOW} bytes, got {len(body)}"
            )
        self.socket = sock
        self.outgoing = bytearray(hello())
        self._first, self._block = _header_blocks(authority, path, headers)
        pieces = [body[at : at + _MAX_FRAME] for at in range(0, len(body), _MAX_FRAME)]
        data = b"".join(
            frame(_DATA, _END_STREAM if index == len(pieces) - 1 else 0, 0, piece) for index, piece in enumerate(pieces)
        )
        # Where the frames of a request have their stream's number.
        self._numbers = [_STREAM_AT] + [
            _FRAME.size + len(self._block) + index * (_FRAME.size + _MAX_FRAME) + _STREAM_AT
            for index in range(len(pieces))
        ]
        self._template = bytearray(frame(_HEADERS, _END_HEADERS, 0, self._block) + data)
        self._body_size = len(body)
        self._stream = 1
        self._window = _DEFAULT_WINDOW
        self._max_streams = 100  # until the server says what it allows
        self._open: dict[int, list[int]] = {}  # stream: tag, bytes so far
        self._incoming = bytearray()
        self._unrenewed = 0

    def ready(self) -> bool:
        """Whether the server's limits on streams and unread bytes leave room."""
        return len(self._open) < self._max_streams and self._window >= self._body_size

    def send(self, tag: int) -> None:
        """Puts a request into `outgoing`."""
        stream, self._stream = self._stream, self._stream + 2
        template = self._template
        for at in self._numbers:
            _STREAM.pack_into(template, at, stream)
        if stream == 1:
            self.outgoing += frame(_HEADERS, _END_HEADERS, stream, self._first)
            self.outgoing += template[_FRAME.size + len(self._block) :]
        else:
            self.outgoing += template
        self._window -= self._body_size
        self._open[stream] = [tag, 0]

    def receive(self, data: bytes) -> list[Answer]:
        """Takes frames, answers those that want an answer, and tells which requests have ended."""
        if not data:
            raise ProtocolError("the server closed the connection")
        incoming = self._incoming
        incoming += data
        ended: list[Answer] = []
        at = 0
        while len(incoming) - at >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(incoming, at)
            length = high << 16 | low
            if len(incoming) - at < _FRAME.size + length:
                break
            begin = at + _FRAME.size
            at = begin + length
            if kind == _DATA:
                self._unrenewed += length
                if stream in self._open:
                    self._open[stream][1] += length
            elif kind != _HEADERS:
                self._control(kind, flags, stream, bytes(incoming[begin:at]))
            if kind <= _HEADERS and flags & _END_STREAM and stream in self._open:
                tag, size = self._open.pop(stream)
                ended.append(Answer(tag, size))
        del incoming[:at]
        if self._unrenewed >= _RENEW:
            self.outgoing += frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unrenewed))
            self._unrenewed = 0
        return ended

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in _SETTING.iter_unpack(payload):
                if name == _MAX_STREAMS:
                    self._max_streams = value
                elif name == _INITIAL_WINDOW and value < self._body_size:
                    raise ProtocolError(f"the server's streams take {value} bytes, the body has {self._body_size}")
            self.outgoing += frame(_SETTINGS, _ACK, 0)
        elif kind == _PING and not flags & _ACK:
            self.outgoing += frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big") & _WIDE
        elif kind == _RST_STREAM and stream in self._open:
            raise ProtocolError(f"the server reset a stream with error {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY:
            raise ProtocolError(f"the server said good-bye: {payload[8:]!r}")


class Http1:
    """One connection of HTTP/1.1: one request at a time."""

    def __init__(self, sock: socket.socket, authority: str, path: str, headers: Sequence[str], body: bytes) -> None:
        self.socket = sock
        self.outgoing = bytearray()
        lines = [f"POST {path} HTTP/1.1", f"host: {authority}", f"content-length: {len(body)}", *headers, "", ""]
        self._request = "\r\n".join(lines).encode() + body
        self._tag: int | None = None
        self._incoming = bytearray()

    def ready(self) -> bool:
        """Whether the last request has ended."""
        return self._tag is None

    def send(self, tag: int) -> None:
        """Puts a request into `outgoing`."""
        self._tag = tag
        self.outgoing += self._request

    def receive(self, data: bytes) -> list[Answer]:
        """Takes a response, in one piece or several."""
        if not data:
            raise ProtocolError("the server closed the connection")
        self._incoming += data
        head, found, rest = self._incoming.partition(b"\r\n\r\n")
        if not found or self._tag is None:
            return []
        lines = head.lower().split(b"\r\n")
        if lines[0].split()[1] != b"200":
            raise ProtocolError(f"the server answered {bytes(lines[0]).decode()}")
        size = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        if len(rest) < size:
            return []
        tag, self._tag = self._tag, None
        self._incoming.clear()
        return [Answer(tag, size)]


def _header_blocks(authority: str, path: str, headers: Sequence[str]) -> tuple[bytes, bytes]:
    """HPACK: the first request's headers, which enter the table, and those of the others, which refer to it."""

    def text(value: str) -> bytes:
        if len(value) > 126:
            raise ProtocolError(f"expected a header of at most 126 characters, got '{value}'")
        return bytes([len(value)]) + value.encode()

    pairs = [tuple(part.strip() for part in header.split(":", 1)) for header in headers]
    fixed = bytes([0x83, 0x86])  # :method POST, :scheme http
    first = fixed + b"\x44" + text(path) + b"\x41" + text(authority)
    first += b"".join(b"\x40" + text(name) + text(value) for name, value in pairs)
    entries = 2 + len(pairs)
    # The dynamic table starts at index 62 with the newest entry.
    return first, fixed + bytes(0x80 | 62 + index for index in reversed(range(entries)))
