"""What the memory manager moves: a model, and where it belongs."""

from __future__ import annotations

from typing import Any


class ModelPatcher:
    def __init__(self, model: Any, load_device: Any, offload_device: Any) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
