"""Names for versions, such as `stable` and `canary`."""

from __future__ import annotations

import re

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def is_label(text: str) -> bool:
    """Whether a word may be a version's label: nothing that could be mistaken for a number."""
    return _LABEL.fullmatch(text) is not None
