"""BLIP (arXiv 2201.12086): transformers' `BlipForConditionalGeneration`, of any size, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from transformers.models.blip.modeling_blip import BlipForConditionalGeneration
from transformers.models.blip.processing_blip import BlipProcessor

from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.errors import ModelError


def load(settings: CaptionerSettings) -> BlipCaptioner:
    """Returns the captioner; nothing is read before it is entered."""
    return BlipCaptioner(settings)


class BlipCaptioner:
    """A BLIP that writes captions, see `captioner.Captioner`."""

    def __init__(self, settings: CaptionerSettings) -> None:
        self.settings = settings
        self._model: Any = None
        self._processor: Any = None

    def __enter__(self) -> BlipCaptioner:
        """Loads the model.

        Raises:
            ModelError: it is not there and cannot be loaded, or is no BLIP.
        """
        settings = self.settings
        try:
            self._processor = BlipProcessor.from_pretrained(settings.model)
            # Loaded in its own format and then converted: the argument for it changed its name between the versions.
            model = BlipForConditionalGeneration.from_pretrained(settings.model)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(_explain(settings.model, error)) from error
        self._model = model.to(settings.device, settings.dtype).eval()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._model = self._processor = None
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Returns a caption for each RGB picture, in order."""
        settings = self.settings
        texts = {"text": [settings.prompt] * len(pictures)} if settings.prompt else {}
        inputs = self._processor(images=list(pictures), return_tensors="pt", **texts)
        inputs = {name: tensor.to(settings.device) for name, tensor in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(settings.dtype)
        with torch.no_grad():
            rows = self._model.generate(
                **inputs,
                num_beams=settings.num_beams,
                max_new_tokens=settings.max_new_tokens,
                min_new_tokens=settings.min_new_tokens,
                do_sample=False,
            )
        return [" ".join(text.split()) for text in self._processor.batch_decode(rows, skip_special_tokens=True)]


def _explain(model: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(model).exists():
        return (
            f"{model} cannot be loaded as a BLIP captioner: {reason} A folder of one holds config.json, "
            "preprocessor_config.json, vocab.txt and model.safetensors or pytorch_model.bin."
        )
    return (
        f"The captioner {model} is neither a folder here nor in the download cache, and the hub did not give it: {reason} "
        "With a network, try again; HF_ENDPOINT chooses another address of the hub. Without one, load its files elsewhere, put "
        "them into one folder, and give that folder as --model."
    )
