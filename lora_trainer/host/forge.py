"""Forge, Forge Neo and reForge: they move models by a memory manager of their own, and load them when they draw.

So nothing has to be brought back, and whether a generation fits beside a training they see for themselves. What needs their
model runs in their main thread. Forge was seen running; the others are written from their sources.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import sd_models
from modules_forge import main_thread

from lora_trainer.host.webui import WebUI


class Forge(WebUI):
    """See `webui.WebUI`."""

    name = "forge"
    label = "Forge"
    memory_manager = "backend.memory_management"
    model_patcher = "backend.patcher.base"

    def run(self, function: Callable[[], Any]) -> Any:
        outcome: list[Any] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                outcome.append(function())
            except BaseException as error:  # their thread would print it and go on
                errors.append(error)

        main_thread.run_and_wait_result(call)
        if errors:
            raise errors[0]
        return outcome[0]

    def wait_for_start(self) -> None:
        self.run(lambda: None)  # what is loaded at the start is loaded in their main thread

    def make_room(self) -> None:
        self.run(importlib.import_module(self.memory_manager).unload_all_models)

    def bring_back(self) -> None:
        pass

    def load_captioner(self, interrogator: Any) -> None:
        if interrogator.blip_model is None:
            model = interrogator.load_blip_model().to(device=interrogator.offload_device, dtype=interrogator.dtype)
            patcher = importlib.import_module(self.model_patcher).ModelPatcher
            interrogator.blip_patcher = patcher(
                model, load_device=interrogator.load_device, offload_device=interrogator.offload_device
            )
            interrogator.blip_model = model
        importlib.import_module(self.memory_manager).load_models_gpu([interrogator.blip_patcher])

    def forget_lora(self, path: Path) -> None:
        networks = sys.modules.get("networks")  # of their built-in LoRA extension, which can be switched off
        if networks is None:
            return
        forget_files = getattr(networks.load_lora_state_dict, "cache_clear", None)  # Neo keeps no files
        if forget_files is not None:
            forget_files()
        model = sd_models.model_data.sd_model
        if hasattr(model, "current_lora_hash"):
            model.current_lora_hash = ""  # equal to that of no prompt, so the next one reads its files anew
        for patcher in _lora_patchers(model):
            patcher.lora_patches.clear()  # what was read of the files; on Windows they stay in use as long as it lives
            patcher.lora_loader.loaded_hash = ""  # merges them anew: it compares their names and strengths, not what is in them
        networks.list_available_networks()


def _lora_patchers(model: Any) -> list[Any]:
    """Returns what merges LoRAs into the denoiser and the text encoders; none where no model is loaded, and in reForge."""
    drawn = [getattr(model, name, None) for name in ("forge_objects", "forge_objects_after_applying_lora")]
    patchers = [getattr(each, "unet", None) for each in drawn]
    patchers += [getattr(getattr(each, "clip", None), "patcher", None) for each in drawn]
    return [patcher for patcher in patchers if hasattr(patcher, "lora_loader")]


class ForgeNeo(Forge):
    """See `Forge`."""

    name = "forge_neo"
    label = "Forge Neo"


class ReForge(Forge):
    """See `Forge`."""

    name = "reforge"
    label = "reForge"
    memory_manager = "ldm_patched.modules.model_management"
    model_patcher = "ldm_patched.modules.model_patcher"
