"""What a measurement or a built engine is of: the file, the processor or the GPU."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from inferd_protocol.external_data import data_files

_CPUINFO = Path("/proc/cpuinfo")
_GPUS = Path("/proc/driver/nvidia/gpus")


def sha256(path: Path) -> str:
    """Of a model's content, hexadecimal: its file and those that it keeps weights in.

    Raises OSError where one cannot be read, and ExternalDataError as `data_files` does.
    """
    digests = [_digest(path), *(_digest(path.parent / name) for name in data_files(path))]
    # Where there is one file, its own digest: what was built or measured for it stays known.
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name and a digest of what it can do: machines under one name may differ in that."""
    fields: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    abilities = fields.get("flags") or fields.get("Features", "")
    name = fields.get("model name") or platform.machine()
    return f"{name} {hashlib.sha256(abilities.encode()).hexdigest()[:8]}"


def gpu_model(gpus: Path = _GPUS) -> str:
    """The first GPU's name as the driver has it; `gpu` where it does not say."""
    try:
        for folder in sorted(gpus.iterdir()):
            for line in (folder / "information").read_text().splitlines():
                name, _, value = line.partition(":")
                if name.strip() == "Model":
                    return value.strip()
    except OSError:
        pass
    return "gpu"
