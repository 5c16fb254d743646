"""What is made of h2load's output and log."""

import numpy as np
import pytest

from benchmarks.load import Summary, arguments, check, parse, window
from benchmarks.payload import Call
from benchmarks.process import Failed

OUTPUT = """
finished in 2.01s, 2654.50 req/s, 315.36KB/s
requests: 5309 total, 5341 started, 5309 done, 5309 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 5309 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 630.71KB (645852) total, 16.14KB (16527) headers (space savings 96.16%), 337.00KB (345085) data
"""


def test_the_summary_is_read():
    assert parse(OUTPUT) == Summary(started=5341, done=5309, bad=0, data_bytes=345085)


def test_output_without_counts_is_a_failure():
    with pytest.raises(Failed, match="did not finish: connect failed"):
        parse("connect failed")


def test_answers_of_the_expected_size_pass():
    check(parse(OUTPUT), 65)


def test_grpc_errors_which_bring_no_data_are_noticed():
    with pytest.raises(Failed, match=r"brought 0\.0 bytes each, a success brings 65"):
        check(Summary(started=10, done=10, bad=0, data_bytes=0), 65)


def test_a_share_of_grpc_errors_is_noticed():
    with pytest.raises(Failed, match="bytes each"):
        check(Summary(started=1000, done=1000, bad=0, data_bytes=65 * 950), 65)


def test_failed_requests_are_noticed():
    with pytest.raises(Failed, match="3 of 10 requests failed"):
        check(Summary(started=10, done=7, bad=3, data_bytes=7 * 65), 65)


def test_only_the_requests_that_ended_in_the_window_count():
    log = np.array([[500_000, 200, 100], [1_000_000, 200, 200], [1_500_000, 200, 400], [1_900_000, 200, 200_000]])
    found = window(log, begin=1.0, end=2.0, cpu_seconds=0.5)
    assert (found.requests, found.requests_per_s, found.p50_us, found.cpu_us_per_request) == (2, 2.0, 300.0, 250_000.0)


def test_an_empty_window_is_a_failure():
    with pytest.raises(Failed, match="no request ended"):
        window(np.zeros((0, 3), np.int64), 1.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("http1", "in_flight", "connections", "streams"),
    [(False, 1, 1, 1), (False, 8, 8, 1), (False, 32, 8, 4), (False, 128, 8, 16), (True, 32, 32, 1)],
)
def test_what_is_in_flight_is_connections_times_streams(tmp_path, http1, in_flight, connections, streams):
    command = arguments(Call("127.0.0.1:1", "/x", (), tmp_path, http1, 1), in_flight, 1.5)
    assert [f"-c{connections}", f"-m{streams}", "-D", "1500ms"] == command[2:6]
