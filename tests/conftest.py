"""Shared by every test."""

import sys
from pathlib import Path

from hypothesis import settings

# `from support...`: the helpers beside the tests are a plain folder, not an installed package.
sys.path.insert(0, str(Path(__file__).parent))

# A machine that is busy for a moment is no failure of the code; a hang is pytest-timeout's to find.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
