"""What is started is measured as a whole, and ended as a whole."""

import os
import sys

import pytest

from benchmarks.process import Failed, Started

# A parent whose child leaves its session, ignores SIGTERM and holds memory. Both say so through a named pipe.
PARENT = '''
import signal, subprocess, sys
child = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
held = bytearray(50_000_000)
open(sys.argv[1], "w").write("child up\\\\n")
signal.pause()
"""
subprocess.Popen([sys.executable, "-c", child, sys.argv[1]], start_new_session=True)
sum(range(20_000_000))
open(sys.argv[2], "w").write("parent up\\n")
signal.pause()
'''


def test_children_that_detach_are_counted_and_ended(tmp_path):
    pipes = [tmp_path / "child", tmp_path / "parent"]
    for pipe in pipes:
        os.mkfifo(pipe)
    with Started([sys.executable, "-c", PARENT, *map(str, pipes)], tmp_path / "log") as started:
        assert [pipe.read_text() for pipe in pipes] == ["child up\n", "parent up\n"]
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
        os.waitid(os.P_PID, started._process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(Failed, match="ended with status 1: no such model"):
            started.check()
