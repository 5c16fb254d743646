"""Generates the message modules from the .proto files: `python protos/generate.py [--check]`.

protoc registers generated messages in protobuf's process-wide default pool. tritonclient and kserve register the same
full names there, and a second file with the same symbols is refused at import, so the generated code is pointed at a
pool of this package's own.
"""

from __future__ import annotations

import argparse
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent
PACKAGE = "inferd_protocol"
SOURCES = ("model_config", "grpc_service")
DEFAULT_POOL = "_descriptor_pool.Default()"
POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool\n"


def generate(folder: Path) -> dict[str, str]:
    """Runs protoc into `folder` and returns the text of each generated file by its name."""
    includes = [f"-I{ROOT}", f"-I{importlib.resources.files('grpc_tools') / '_proto'}"]
    protos = [f"{PACKAGE}/{source}.proto" for source in SOURCES]
    status = protoc.main(["protoc", *includes, f"--python_out={folder}", f"--pyi_out={folder}", *protos])
    if status != 0:
        raise SystemExit(f"protoc ended with status {status}")
    files = {}
    for path in sorted((folder / PACKAGE).iterdir()):
        text = path.read_text()
        if path.suffix == ".py":
            if text.count(DEFAULT_POOL) != 1 or POOL_IMPORT not in text:
                raise SystemExit(f"{path.name} does not have the shape expected of protoc's output: adapt this script")
            text = text.replace(POOL_IMPORT, f"from {PACKAGE}.pool import POOL as _POOL\n")
            text = text.replace(DEFAULT_POOL, "_POOL")
        files[path.name] = text
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a committed module is stale")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = generate(Path(folder))
    stale = [name for name, text in files.items() if _committed(name) != text]
    if arguments.check:
        if stale:
            print(f"stale generated modules: {', '.join(stale)}; run `make protos`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        (ROOT / PACKAGE / name).write_text(files[name])
    print(f"wrote {', '.join(stale) or 'nothing: all is current'}")
    return 0


def _committed(name: str) -> str | None:
    path = ROOT / PACKAGE / name
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    raise SystemExit(main())
