"""What this process may use of the machine: containers limit CPUs in ways that `os.cpu_count` does not see."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cpus(cgroup: Path = CGROUP) -> int:
    """The CPUs this process may keep busy: its affinity, cut to its cgroup's quota (v2 or v1), at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """CPUs that the cgroup's bandwidth limit amounts to, None where there is none."""
    try:  # v2: "<microseconds or max> <period>"
        limit, period = (cgroup / "cpu.max").read_text().split()
    except OSError:
        pass
    else:
        return None if limit == "max" else int(limit) / int(period)
    try:  # v1: -1 for no limit
        microseconds = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        every = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    except OSError:
        return None
    return None if microseconds < 0 else microseconds / every


def give_memory_back() -> None:
    """Returns what the C library's allocator holds and nobody uses to the system, where the library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
