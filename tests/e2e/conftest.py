"""The reference model, trained once for all tests and workers of a run."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reference import ReferenceArtefact

DATASET = "fashion-mnist"
INFERD = Path(sys.executable).with_name("inferd")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs all tests of the reference model; the first of them waits for the training, some minutes."""
    for item in items:
        if "reference_artefact" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("reference"))
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def reference_artefact(tmp_path_factory: pytest.TempPathFactory) -> ReferenceArtefact:
    """The reference CNN with its default settings, trained, evaluated and exported by the commands."""
    base = tmp_path_factory.getbasetemp()
    # A worker's own folder lies in the one that the run's workers share.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "reference"
    shared.mkdir(exist_ok=True)
    artefact = ReferenceArtefact(shared / "run", shared / "export")
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The export appears last, and whole.
        if not artefact.export.exists():
            run_inferd("train", "--dataset", DATASET, "--output", artefact.run)
            run_inferd("evaluate", artefact.run)
            run_inferd("export", artefact.run, "--output", artefact.export)
    return artefact


def run_inferd(*arguments: object) -> str:
    """Runs a command that must succeed, in a process of its own; gives its output."""
    done = subprocess.run([INFERD, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
