"""Stable Diffusion 2: OpenCLIP-H as text encoder, its last but one layer behind the final norm, epsilon or v-prediction."""

from __future__ import annotations

from collections.abc import Sequence

from lora_trainer.models.detect import Detection, Layout
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import ModelSettings, Tensors
from lora_trainer.models.sizes import TextSizes
from lora_trainer.models.text import OPEN_CLIP_PADDING, encode_last, keep_layers, tokenize_captions

CUT_OPEN_CLIP_H = (1024, 23)
"""Width and layers of an OpenCLIP-H without its last layer, of 24."""


class StableDiffusion2(DiffusionModel):
    """SD 2.0, 2.1 and the models made from them."""

    def _prepare_text_encoders(self) -> None:
        num_layers = count_used_layers(self.facts.text_encoders[0], self.detection.layout)
        keep_layers(self.text_encoders[0], num_layers, keeps_final_norm=True)

    def encode_texts(self, captions: Sequence[str]) -> Tensors:
        """Returns "text" [B, T, C]."""
        return {"text": encode_last(self.text_encoders[0], tokenize_captions(captions, OPEN_CLIP_PADDING))}

    def metadata(self) -> dict[str, str]:
        """See `family.TrainableModel.metadata`."""
        if self.schedule.prediction_type == "v_prediction":
            return self.base_metadata("sd_v2_v", "stable-diffusion-v2-768-v")
        return self.base_metadata("sd_v2", "stable-diffusion-v2-512")


def count_used_layers(sizes: TextSizes, layout: Layout) -> int:
    """Returns how many of the text encoder's layers are used.

    Single files keep the unused last layer; diffusers folders, and files made from them, are saved without it.
    """
    is_cut = layout == "diffusers" or (sizes.width, sizes.layers) == CUT_OPEN_CLIP_H
    return sizes.layers if is_cut else sizes.layers - 1


def load(settings: ModelSettings, detection: Detection) -> StableDiffusion2:
    """Loads an SD2 base."""
    return StableDiffusion2(settings, detection)
