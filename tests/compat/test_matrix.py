"""The compatibility matrix leaves nothing out."""

from __future__ import annotations

from pathlib import Path

import pytest
from inferd_protocol.methods import METHODS
from inferd_protocol.reasons import Parameter

MATRIX = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_every_rpc_is_in_it(name: str) -> None:
    assert name in MATRIX


@pytest.mark.parametrize("name", [str(parameter) for parameter in Parameter])
def test_every_parameter_is_in_it(name: str) -> None:
    assert f"`{name}`" in MATRIX
