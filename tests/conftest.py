"""What every test starts from: no network, one thread, fixed seeds."""

from __future__ import annotations

import os

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    import random

    random.seed(0)
    try:
        import torch
    except ImportError:
        return
    torch.manual_seed(0)
