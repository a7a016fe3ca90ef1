"""Stable Diffusion 1: OpenAI's CLIP-L as text encoder, with clip skip."""

from __future__ import annotations

from collections.abc import Sequence

from lora_trainer.errors import ConfigError, Problem
from lora_trainer.models.detect import Detection
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import ModelSettings, Tensors
from lora_trainer.models.text import CLIP_PADDING, encode_last, keep_layers, tokenize_captions


class StableDiffusion1(DiffusionModel):
    """SD 1.4, 1.5 and the models made from them."""

    is_clip_skip_used = True

    def _prepare_text_encoders(self) -> None:
        num_layers = self.facts.text_encoders[0].layers
        if not 1 <= self.settings.clip_skip <= num_layers:
            raise ConfigError(
                [Problem("clip_skip", f"({self.settings.clip_skip}) must be from 1 to {num_layers}; 1 and 2 are usual.")]
            )
        keep_layers(self.text_encoders[0], num_layers - self.settings.clip_skip + 1, keeps_final_norm=True)

    def encode_texts(self, captions: Sequence[str]) -> Tensors:
        """Returns "text" [B, T, C]."""
        return {"text": encode_last(self.text_encoders[0], tokenize_captions(captions, CLIP_PADDING))}

    def metadata(self) -> dict[str, str]:
        """See `family.TrainableModel.metadata`."""
        version = "sd_v1_v" if self.schedule.prediction_type == "v_prediction" else "sd_v1"
        return self.base_metadata(version, "stable-diffusion-v1")


def load(settings: ModelSettings, detection: Detection) -> StableDiffusion1:
    """Loads an SD1 base."""
    return StableDiffusion1(settings, detection)
