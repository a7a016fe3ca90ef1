"""BLIP (arXiv 2201.12086): transformers' `BlipForConditionalGeneration`, of any size, from a folder."""

from __future__ import annotations

from typing import Any

from transformers.models.blip.modeling_blip import BlipForConditionalGeneration
from transformers.models.blip.processing_blip import BlipProcessor

from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.captioning.generating import GeneratingCaptioner


def load(settings: CaptionerSettings) -> BlipCaptioner:
    """Returns the captioner; nothing is read before it is entered."""
    return BlipCaptioner(settings)


class BlipCaptioner(GeneratingCaptioner):
    """A BLIP that writes captions, see `captioner.Captioner`."""

    label = "BLIP"
    files = "config.json, preprocessor_config.json, vocab.txt and model.safetensors or pytorch_model.bin"

    def build(self) -> tuple[Any, Any]:
        folder = self.settings.model
        processor = BlipProcessor.from_pretrained(folder, local_files_only=True)
        # Loaded in its own format and then converted: the argument for it changed its name between the versions.
        return BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True), processor
