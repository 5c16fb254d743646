"""What is started is measured as a whole, and ended as a whole."""

import os
import sys
import time

import pytest

from benchmarks.process import Failed, Started

# A parent whose child leaves its session, ignores SIGTERM and holds memory.
PARENT = '''
import os, subprocess, sys, time
child = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = bytearray(50_000_000)
print("up", flush=True)
time.sleep(60)
"""
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
sum(range(20_000_000))
print("parent up", flush=True)
time.sleep(60)
'''


def await_text(started, text):
    ends = time.monotonic() + 30
    while text not in started.log.read_text().splitlines():
        assert time.monotonic() < ends, started.tail()
        time.sleep(0.02)


def test_children_that_detach_are_counted_and_ended(tmp_path):
    with Started([sys.executable, "-c", PARENT], tmp_path / "log") as started:
        await_text(started, "up")
        await_text(started, "parent up")
        members = started.members()
        assert len(members) == 2
        assert started.cpu_seconds() > 0.05
        assert 50e6 < started.resident_bytes() <= started.peak_bytes() * 1.01
        assert os.getpid() not in members
    assert started.members() == []
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in members)


def test_a_program_that_ended_is_told_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with Started(command, tmp_path / "log") as started:
        await_text(started, "no such model")
        time.sleep(0.5)  # its words come before its end
        with pytest.raises(Failed, match="ended with status 1: no such model"):
            started.check()
