"""Shared by every test."""

import sys
from pathlib import Path

# `from support...`: the helpers beside the tests are a plain folder, not an installed package.
sys.path.insert(0, str(Path(__file__).parent))
