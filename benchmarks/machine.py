"""On what a run was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("onnxruntime", "grpcio", "protobuf", "numpy", "pygrpc-native")


def describe() -> dict[str, str]:
    """Processor, cores, memory, versions: what another reader needs to place the figures."""
    cpu = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "0")
    packages = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    h2load = subprocess.run(["h2load", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores of {cpu[0] if cpu else platform.machine()}, "
        f"{int(memory) / 1024**2:.0f} GiB",
        "software": f"Linux {platform.release()}, Python {platform.python_version()}, {', '.join(packages)}, {h2load}",
        "commit": _commit(),
    }


def busy() -> float:
    """The load average of the last minute: near 0 on a machine that nobody else uses."""
    return os.getloadavg()[0]


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + (
        " with changes" if git("status", "--porcelain") else ""
    )
