"""Where the trained reference model lies."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReferenceArtefact:
    """`run`: model.keras, metrics.json and the plots. `export`: model.onnx and report.json. Read only: it is shared."""

    run: Path
    export: Path
