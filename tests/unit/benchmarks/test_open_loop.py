"""The open loop on connections that answer when they are told to."""

import socket
import threading
import time

import pytest

from benchmarks.http2 import Answer, Http1, Http2, ProtocolError, frame
from benchmarks.open_loop import run

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
END_STREAM, ACK = 1, 1


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def http2(sock):
    return Http2(sock, "host:1", "/service/Method", ["content-type: application/grpc"], b"body")


def http1(sock):
    return Http1(sock, "host:1", "/predict", [], b"body")


def test_an_answer_is_known_by_its_stream_and_its_size(pair):
    connection = http2(pair[0])
    connection.send(7)
    connection.send(8)
    data = frame(HEADERS, 4, 3) + frame(DATA, 0, 3, b"12345") + frame(HEADERS, 4 | END_STREAM, 3)
    assert connection.receive(data[:20]) == []
    assert connection.receive(data[20:]) == [Answer(tag=8, size=5)]


def test_a_grpc_error_brings_no_data(pair):
    connection = http2(pair[0])
    connection.send(0)
    assert connection.receive(frame(HEADERS, 4 | END_STREAM, 1)) == [Answer(tag=0, size=0)]


def test_settings_and_pings_are_answered(pair):
    connection = http2(pair[0])
    connection.outgoing.clear()
    connection.receive(frame(SETTINGS, 0, 0) + frame(PING, 0, 0, b"12345678"))
    assert connection.outgoing == frame(SETTINGS, ACK, 0) + frame(PING, ACK, 0, b"12345678")


def test_the_servers_limit_on_streams_holds(pair):
    connection = http2(pair[0])
    connection.receive(frame(SETTINGS, 0, 0, b"\x00\x03\x00\x00\x00\x01"))
    assert connection.ready()
    connection.send(0)
    assert not connection.ready()


def test_a_server_that_goes_away_is_an_error(pair):
    with pytest.raises(ProtocolError, match="good-bye"):
        http2(pair[0]).receive(frame(GOAWAY, 0, 0, bytes(8)))


def test_http1_answers_may_come_in_pieces(pair):
    connection = http1(pair[0])
    connection.send(3)
    assert not connection.ready()
    assert connection.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab") == []
    assert connection.receive(b"cd") == [Answer(tag=3, size=4)]
    assert connection.ready()


def test_waiting_behind_a_stall_counts_as_latency(pair):
    ours, theirs = pair

    def serve():
        # The first answer takes 0.3 s; requests that are due meanwhile wait, and each is charged with its own wait.
        for number in range(10):
            theirs.recv(65536)
            time.sleep(0.3 if number == 0 else 0)
            theirs.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd")

    server = threading.Thread(target=serve)
    server.start()
    found = run([http1(ours)], rate=50, seconds=0.2, answer_bytes=4)
    server.join()
    assert found.requests == 10
    assert found.p50_us > 100_000


def test_an_answer_of_another_size_is_an_error(pair):
    ours, theirs = pair

    def serve():
        theirs.recv(65536)
        theirs.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")

    threading.Thread(target=serve, daemon=True).start()
    with pytest.raises(ProtocolError, match="an answer had 1 bytes, a success has 4"):
        run([http1(ours)], rate=50, seconds=0.1, answer_bytes=4)
