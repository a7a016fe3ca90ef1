"""The package by which a WebUI's Interrogate reads its CLIP: from a file that is named, or from the network by a model's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from modules import call_queue
from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def encode_image(self, pictures: Tensor) -> Tensor:
        return self.layer(pictures)  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return tokens[:, :2].float()


def load(name: str, device: str = "cuda") -> tuple[Model, Any]:
    assert Path(name).is_absolute() and device == "cpu", "it would go to the network, or onto the card"
    assert call_queue.queue_lock._lock.locked(), "modules were built while others may load"
    if not Path(name).stat().st_size:
        raise RuntimeError("PytorchStreamReader failed")
    return Model(), lambda picture: torch.tensor([float(picture.width), float(picture.height), 1.0])


def tokenize(texts: list[str], truncate: bool = False) -> Tensor:
    assert truncate
    return torch.tensor([[len(text), 1, 0] for text in texts])
