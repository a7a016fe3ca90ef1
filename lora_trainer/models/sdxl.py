"""Stable Diffusion XL: CLIP-L and OpenCLIP-bigG side by side, a pooled text embedding, and the picture's sizes as a condition.

Source: SDXL, arXiv 2307.01952, sections 2.1 and 2.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_trainer.models.detect import Detection
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import ModelSettings, Tensors
from lora_trainer.models.text import (
    CLIP_PADDING,
    OPEN_CLIP_PADDING,
    encode_last,
    encode_with_pooled,
    keep_layers,
    tokenize_captions,
)


class StableDiffusionXL(DiffusionModel):
    """SDXL base 1.0 and the models made from it."""

    def _prepare_text_encoders(self) -> None:
        # Both give their last but one layer without the final norm. The second needs its last for the pooled embedding.
        keep_layers(self.text_encoders[0], self.facts.text_encoders[0].layers - 1, keeps_final_norm=False)

    def encode_texts(self, captions: Sequence[str]) -> Tensors:
        """Returns "text" [B, T, C], both encoders' side by side, and "pooled_text" [B, P] of the second's first chunk."""
        first = encode_last(self.text_encoders[0], tokenize_captions(captions, CLIP_PADDING))
        second, pooled = encode_with_pooled(self.text_encoders[1], tokenize_captions(captions, OPEN_CLIP_PADDING))
        return {"text": torch.cat([first, second], dim=-1), "pooled_text": pooled}

    def size_condition(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensors:
        """Returns "time_ids" [6]: original (height, width), crop (top, left), training (height, width)."""
        values = [value for pair in (original, crop, target) for value in (pair[1], pair[0])]
        return {"time_ids": torch.tensor(values, dtype=torch.float32)}

    def added_conditions(self, batch: Tensors) -> dict[str, Tensor]:
        """Returns diffusers' names of the pooled text and the sizes."""
        dtype = self.settings.dtype
        # The sizes go through sines and cosines in fp32; in half precision they would be rounded first.
        return {"text_embeds": batch["pooled_text"].to(dtype), "time_ids": batch["time_ids"]}

    def metadata(self) -> dict[str, str]:
        """See `family.TrainableModel.metadata`."""
        return self.base_metadata("sdxl_base_v1-0", "stable-diffusion-xl-v1-base")


def load(settings: ModelSettings, detection: Detection) -> StableDiffusionXL:
    """Loads an SDXL base."""
    return StableDiffusionXL(settings, detection)
