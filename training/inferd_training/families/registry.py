"""The families by name. A new family is one more file and one more entry here."""

from __future__ import annotations

from collections.abc import Mapping

from inferd_training.families.cnn import CNN
from inferd_training.families.family import Family
from inferd_training.families.lstm import LSTM
from inferd_training.families.transformer import TRANSFORMER

FAMILIES: Mapping[str, Family] = {family.name: family for family in (CNN, TRANSFORMER, LSTM)}
