"""Whether a report vouches for the files beside it. Light: publishing needs no TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferd_protocol.artefact import GOLDEN_FILE

from inferd_training.errors import VerificationError
from inferd_training.files import sha256


def check_report(model: Path, report: Path) -> dict[str, Any]:
    """Reads a report and checks that it says of exactly this file that it passed, and that the golden samples beside it
    are those it names; reports of earlier exports name none. Raises VerificationError.
    """
    try:
        document = json.loads(report.read_text(encoding="utf-8"))
        reported, verified = document["model"]["sha256"], document["verified"]
        golden = document["golden"]["sha256"] if "golden" in document else None
    except OSError as error:
        raise VerificationError(f"{report} cannot be read ({error.strerror}): export the model first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"{report} is not a report of an export: export the model again") from error
    if verified is not True:
        raise VerificationError(f"{report} does not say that {model.name} was verified: export the model again")
    _check(model, reported)
    samples = model.parent / GOLDEN_FILE
    if golden is not None:
        if not samples.is_file():
            raise VerificationError(f"{samples} is missing, which the report names: export the model again")
        _check(samples, golden)
    elif samples.exists():
        raise VerificationError(f"{samples} is not named by the report: export the model again")
    return dict(document)


def _check(file: Path, reported: str) -> None:
    found = sha256(file)
    if reported != found:
        raise VerificationError(
            f"{file} is not the file that was verified: its SHA-256 is {found}, the report's {reported}: "
            "export the model again"
        )
