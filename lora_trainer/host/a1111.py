"""AUTOMATIC1111's WebUI: its models are moved by its own functions, which know of --medvram and --lowvram."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from modules import devices, sd_models, shared

from lora_trainer.host.webui import WebUI


class A1111(WebUI):
    """See `webui.WebUI`."""

    name = "a1111"
    label = "AUTOMATIC1111"

    def __init__(self) -> None:
        super().__init__()
        self._away: list[Any] = []

    def wait_for_start(self) -> None:
        if not shared.cmd_opts.skip_load_model_at_start:
            sd_models.model_data.get_sd_model()  # loads it, or waits for the thread that does

    def make_room(self) -> None:
        for model in _loaded_models():
            if model.lowvram or next(model.parameters()).device.type == shared.device.type:
                self._away.append(model)
                sd_models.send_model_to_cpu(model)

    def bring_back(self) -> None:
        while self._away:
            model = self._away.pop()
            if model in _loaded_models():  # else the WebUI dropped it meanwhile
                sd_models.send_model_to_device(model)

    def load_captioner(self, interrogator: Any) -> None:
        if interrogator.blip_model is None:
            model = interrogator.load_blip_model()
            is_full = shared.cmd_opts.no_half or interrogator.running_on_cpu
            interrogator.blip_model = model if is_full else model.half()
        interrogator.blip_model = interrogator.blip_model.to(devices.device_interrogate)
        interrogator.dtype = next(interrogator.blip_model.parameters()).dtype  # the WebUI's own load() takes it from CLIP

    def lora_read_at(self, path: Path) -> float | None:
        held = getattr(sys.modules.get("networks"), "networks_in_memory", {})
        times = (network.mtime for network in list(held.values()) if Path(network.network_on_disk.filename) == path)
        return next(times, None)

    def forget_lora(self, path: Path) -> None:
        import torch

        networks = sys.modules.get("networks")  # of the built-in extension Lora, which can be switched off
        if networks is None:
            return
        held = networks.networks_in_memory
        for name in [name for name, network in held.items() if Path(network.network_on_disk.filename) == path]:
            del held[name]
        # A layer is computed anew only when the list of names changes, so it is made empty: as after a prompt without LoRA.
        networks.loaded_networks.clear()
        with torch.no_grad():
            for model in _loaded_models():
                for layer in getattr(model, "network_layer_mapping", {}).values():
                    networks.network_apply_weights(layer)
        networks.list_available_networks()


def _loaded_models() -> list[Any]:
    data = sd_models.model_data
    current = [] if data.sd_model is None else [data.sd_model]
    return current + [model for model in data.loaded_sd_models if model is not data.sd_model]
