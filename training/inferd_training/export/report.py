"""Whether a report vouches for a file. Light: publishing needs no TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferd_training.errors import VerificationError
from inferd_training.files import sha256


def check_report(model: Path, report: Path) -> dict[str, Any]:
    """Reads a report and checks that it says of exactly this file that it passed. Raises VerificationError."""
    try:
        document = json.loads(report.read_text(encoding="utf-8"))
        reported, verified = document["model"]["sha256"], document["verified"]
    except OSError as error:
        raise VerificationError(f"{report} cannot be read ({error.strerror}): export the model first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"{report} is not a report of an export: export the model again") from error
    if verified is not True:
        raise VerificationError(f"{report} does not say that {model.name} was verified: export the model again")
    found = sha256(model)
    if reported != found:
        raise VerificationError(
            f"{model} is not the file that was verified: its SHA-256 is {found}, the report's {reported}: "
            "export the model again"
        )
    return dict(document)
