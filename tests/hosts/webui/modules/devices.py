"""Where Interrogate CLIP runs, and what frees memory."""

from __future__ import annotations

import torch

device_interrogate = torch.device("cpu")
cpu = torch.device("cpu")


def torch_gc() -> None:
    pass
