"""The built-in LoRA extension: replaces the `forward` of layers class-wide, and keeps what it loaded by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

PATCHED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)

available_networks: dict[str, Any] = {}
networks_in_memory: dict[str, Any] = {}
loaded_networks: list[Any] = []
lora_dir = Path()


def patch(replace: Callable[[Any, str, Any], None]) -> None:
    """Replaces the forwards; those of the WebUI's own layers add its LoRAs, other layers pass through."""
    for layer_class in PATCHED:
        replace(layer_class, "forward", _patched(layer_class.forward))


def _patched(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def patched_forward(self: nn.Module, *inputs: Any, **options: Any) -> torch.Tensor:
        if hasattr(self, "network_layer_name"):
            network_apply_weights(self)
        return forward(self, *inputs, **options)

    return patched_forward


def network_apply_weights(layer: Any) -> None:
    """Merges the loaded networks into a layer, where their names are others than those merged last. Only without gradients."""
    current, wanted = getattr(layer, "network_current_names", ()), tuple(network.name for network in loaded_networks)
    if current == wanted:
        return
    if not hasattr(layer, "network_backup"):
        layer.network_backup = layer.weight.detach().clone()
    layer.weight.copy_(layer.network_backup + sum(network.strength for network in loaded_networks))
    layer.network_current_names = wanted


def list_available_networks() -> None:
    available_networks.clear()
    available_networks.update({path.stem: path for path in lora_dir.glob("*.safetensors")})
