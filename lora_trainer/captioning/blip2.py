"""BLIP-2 (arXiv 2301.12597): transformers' `Blip2ForConditionalGeneration`, with OPT or T5 behind it, from a folder."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.blip_2.modeling_blip_2 import Blip2ForConditionalGeneration
from transformers.models.blip_2.processing_blip_2 import Blip2Processor

from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.captioning.generating import GeneratingCaptioner


def load(settings: CaptionerSettings) -> Blip2Captioner:
    """Returns the captioner; nothing is read before it is entered."""
    return Blip2Captioner(settings)


class Blip2Captioner(GeneratingCaptioner):
    """A BLIP-2 that writes captions, see `captioner.Captioner`."""

    label = "BLIP-2"
    needs_text = True  # transformers 4.46 fails without: the processor then leaves no room for the picture
    files = "config.json, preprocessor_config.json, the tokenizer's files, and model.safetensors or its parts with their index"

    def build(self) -> tuple[Any, Any]:
        folder = self.settings.model
        processor = Blip2Processor.from_pretrained(folder, local_files_only=True)
        # Read in the format that it will have: 15 GB in fp32 fit few machines. The argument has another name from version 5 on.
        name = "dtype" if int(transformers.__version__.partition(".")[0]) >= 5 else "torch_dtype"
        options = {name: self.settings.dtype}
        return Blip2ForConditionalGeneration.from_pretrained(folder, local_files_only=True, **options), processor

    def clean(self, text: str) -> str:
        """Returns a caption as it is saved, with the prompt that OPT leaves out of its answer and older versions repeat."""
        caption, prompt = super().clean(text), " ".join(self.settings.prompt.split())
        if not prompt or prompt.endswith(":") or caption.lower().startswith(prompt.lower()):
            return caption
        return f"{prompt} {caption}".strip()
