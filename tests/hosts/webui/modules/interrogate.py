"""Interrogate CLIP: BLIP says what is seen, CLIP adds artists' names. Loading CLIP would ask the network, here as there.

Calling `generate_caption` before `load` fails, for it takes the format of numbers from there.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import call_queue, devices, shared
from torch import nn


class Blip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)


class InterrogateModels:
    blip_model: Any = None
    clip_model: Any = None
    dtype: Any = None

    def __init__(self) -> None:
        self.running_on_cpu = devices.device_interrogate == torch.device("cpu")
        self.num_loaded = 0
        self.error: Exception | None = None

    def load_blip_model(self) -> nn.Module:
        if self.error is not None:
            raise self.error
        assert call_queue.queue_lock._lock.locked(), "built while another thread may be loading a checkpoint"
        self.num_loaded += 1
        return Blip().eval()

    def load_clip_model(self) -> Any:
        raise AssertionError("this would load 900 MB from the network")

    def send_blip_to_ram(self) -> None:
        if not shared.opts.data.get("interrogate_keep_models_in_memory") and self.blip_model is not None:
            self.blip_model = self.blip_model.to(devices.cpu)

    def generate_caption(self, pil_image: Any) -> str:
        assert call_queue.queue_lock._lock.locked(), "ran beside a generation"
        weight = self.blip_model.layer.weight
        assert weight.dtype == self.dtype and weight.device.type == devices.device_interrogate.type
        return f"{pil_image.width} wide"
