"""The optimizers of the table as test parameters; one whose package is not installed here is skipped, and says so."""

from __future__ import annotations

import importlib.util

import pytest

from lora_trainer.training.table import OPTIMIZERS

INSTALLED_OPTIMIZERS = [
    pytest.param(
        entry.name,
        marks=pytest.mark.skipif(
            bool(entry.package) and importlib.util.find_spec(entry.package) is None, reason=f"{entry.package} is not installed"
        ),
    )
    for entry in OPTIMIZERS
]
