"""Merges LoRAs into a model's weights, where their files and strengths are others than those merged last."""

from __future__ import annotations


class LoraLoader:
    def __init__(self) -> None:
        self.loaded_hash = str([])
        self.merged: list[float] = []

    def refresh(self, patches: dict[tuple[str, float], float]) -> None:
        """Merges what was read of each file, by file and strength."""
        wanted = str(list(patches))
        if wanted != self.loaded_hash:
            self.merged, self.loaded_hash = list(patches.values()), wanted


class Patcher:
    def __init__(self) -> None:
        self.lora_loader = LoraLoader()
        self.lora_patches: dict[tuple[str, float], float] = {}


class Clip:
    def __init__(self) -> None:
        self.patcher = Patcher()


class ForgeObjects:
    def __init__(self) -> None:
        self.unet = Patcher()
        self.clip = Clip()
