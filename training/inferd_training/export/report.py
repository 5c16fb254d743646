"""Whether a report vouches for the files beside it. Light: publishing needs no TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferd_protocol.artefact import GOLDEN_FILE, WEIGHTS_FILE
from inferd_protocol.external_data import ExternalDataError, data_files

from inferd_training.errors import VerificationError
from inferd_training.files import sha256


def external_files(model: Path) -> tuple[str, ...]:
    """The files that an ONNX file keeps weights in, by their paths below its folder.

    Raises VerificationError where one is missing, cut off, or outside that folder.
    """
    try:
        return data_files(model)
    except ExternalDataError as error:
        raise VerificationError(f"{model} is refused: {error}: export the model again") from error
    except OSError as error:
        raise VerificationError(f"{model} cannot be read: {error.strerror}") from error


def check_report(model: Path, report: Path) -> dict[str, Any]:
    """Reads a report and checks that it says of exactly this file that it passed, and that its weights' file and the
    golden samples beside it are those it names; reports of earlier exports name none. Raises VerificationError.
    """
    try:
        document = json.loads(report.read_text(encoding="utf-8"))
        reported, verified = document["model"]["sha256"], document["verified"]
        weights = {str(name): str(part["sha256"]) for name, part in document["model"].get("weights", {}).items()}
        golden = document["golden"]["sha256"] if "golden" in document else None
    except OSError as error:
        raise VerificationError(f"{report} cannot be read ({error.strerror}): export the model first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{report} is not a report of an export: export the model again") from error
    if verified is not True:
        raise VerificationError(f"{report} does not say that {model.name} was verified: export the model again")
    _check(model, reported)
    found = external_files(model)
    if set(found) != set(weights):
        raise VerificationError(
            f"{model} keeps weights in {', '.join(found) or 'no other file'}, where the report names "
            f"{', '.join(sorted(weights)) or 'none'}: export the model again"
        )
    for name in found:
        _check(model.parent / name, weights[name])
    if WEIGHTS_FILE not in found and (model.parent / WEIGHTS_FILE).exists():
        raise VerificationError(f"{model.parent / WEIGHTS_FILE} is not of the model beside it: export the model again")
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
