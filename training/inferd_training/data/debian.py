"""Debian's packages as sources of data: downloaded and read by Debian's own programs, never installed.

Nothing of a package is run, and nothing of it is unpacked to disk: its files are read in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inferd_training.data.process import run
from inferd_training.errors import SourceUnavailable

TIMEOUT = 300.0
"""Seconds a client may take: the largest packages have 31 MB, a slow line needs minutes."""


def download(packages: Sequence[str], folder: Path) -> dict[str, Path]:
    """Fetches packages of the distribution into `folder`, a scratch folder; gives their files by package.

    Raises SourceUnavailable where apt-get is missing, has no such package, or fails.
    """
    try:
        run(["apt-get", "download", *packages], folder=folder, timeout=TIMEOUT)
    except SourceUnavailable:
        # Most often a machine without package lists; they are fetched into private folders, which needs no root.
        state, cache = folder / "apt-state", folder / "apt-cache"
        (state / "lists" / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State={state}", "-o", f"Dir::Cache={cache}"]
        run(["apt-get", *private, "update"], folder=folder, timeout=TIMEOUT)
        run(["apt-get", *private, "download", *packages], folder=folder, timeout=TIMEOUT)
    # PACKAGE_VERSION_ARCHITECTURE.deb, and no package has a `_` in its name (Debian Policy 5.6.1).
    found = {path.name.split("_")[0].removesuffix(".deb"): path for path in sorted(folder.glob("*.deb"))}
    missing = [package for package in packages if package not in found]
    if missing:
        raise SourceUnavailable(f"apt-get download left no file of {', '.join(missing)}")
    return {package: found[package] for package in packages}


def archive(package: Path) -> bytes:
    """The files of a package, as a tar archive. Raises SourceUnavailable where it is none."""
    return run(["dpkg-deb", "--fsys-tarfile", package.name], folder=package.parent, timeout=TIMEOUT)


def version(package: Path) -> str:
    """The version of a package. Raises SourceUnavailable where it is none."""
    output = run(["dpkg-deb", "--field", package.name, "Version"], folder=package.parent, timeout=TIMEOUT)
    return output.decode(errors="replace").strip()
