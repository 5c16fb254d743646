from __future__ import annotations

import signal

from inferd_server.signals import SignalCounter


def test_the_same_signal_at_once_is_one_request_and_later_or_another_is_a_second() -> None:
    counter = SignalCounter()
    assert counter.count(signal.SIGTERM, 10.0) == 1
    assert counter.count(signal.SIGTERM, 10.01) == 1
    assert counter.count(signal.SIGTERM, 11.0) == 2
    counter = SignalCounter()
    assert counter.count(signal.SIGTERM, 10.0) == 1
    assert counter.count(signal.SIGINT, 10.01) == 2
