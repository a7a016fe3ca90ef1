"""A CLIP model that compares pictures with each other and with their prompts (arXiv 2103.00020): a WebUI's own, or from a folder.

In a folder transformers' layout: `config.json`, weights, tokenizer and image processor of a whole CLIP, such as
openai/clip-vit-base-patch32.
The text encoder inside a base model has no image half, so it will not do.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_trainer.errors import ModelError
from lora_trainer.host.base import HostClip

NEUTRAL = (127, 127, 127)


class ClipEye:
    """See `likeness.Eye`. Looks at each picture and reads each prompt once.

    Args:
        clip: gives the embeddings; of any length.
        label: what compares, for people.
    """

    measure_of_kept = "what the base shows of the prompt"

    def __init__(self, clip: HostClip, label: str = "CLIP") -> None:
        self._clip, self.label = clip, label
        self._looks: dict[tuple[tuple[int, int], bytes], np.ndarray] = {}
        self._read: dict[str, np.ndarray] = {}

    def look(self, picture: Image.Image) -> np.ndarray:
        picture = picture.convert("RGB")
        key = (picture.size, hashlib.sha256(picture.tobytes()).digest())
        if key not in self._looks:
            self._looks[key] = _unit(self._clip.embed_picture(picture))
        return self._looks[key]

    def kept(self, base: Image.Image, picture: Image.Image, prompt: str) -> float:
        """Nearness of picture and prompt, where the base's picture has 1 and a grey one, which shows nothing, 0."""
        text = self._text(prompt)
        nothing, wanted, own = (float(self.look(one) @ text) for one in (Image.new("RGB", base.size, NEUTRAL), base, picture))
        return float(np.clip((own - nothing) / (wanted - nothing), 0, 1)) if wanted - nothing > 1e-4 else 1.0

    def _text(self, prompt: str) -> np.ndarray:
        if prompt not in self._read:
            self._read[prompt] = _unit(self._clip.embed_text(prompt))
        return self._read[prompt]


class FolderClip:
    """A CLIP of transformers' layout; see `host.base.HostClip`."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._processor = model, processor

    def embed_picture(self, picture: Image.Image) -> np.ndarray:
        inputs = self._processor(images=picture, return_tensors="pt")
        return self._embed("image", {"pixel_values": inputs["pixel_values"]})

    def embed_text(self, text: str) -> np.ndarray:
        inputs = self._processor(text=[text], return_tensors="pt", padding=True, truncation=True)
        return self._embed("text", {name: inputs[name] for name in ("input_ids", "attention_mask")})

    @torch.no_grad()
    def _embed(self, half: str, inputs: dict[str, torch.Tensor]) -> np.ndarray:
        found = getattr(self._model, f"get_{half}_features")(**inputs)
        found = getattr(found, "pooler_output", found)[0]  # transformers 5 wraps it
        return np.asarray(found.double().numpy())


def open_clip_eye(folder: Path) -> ClipEye:
    """Loads a CLIP from a folder, onto the CPU: a few hundred pictures take seconds there.

    Raises:
        ModelError: there is no whole CLIP in it.
    """
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(str(folder), local_files_only=True)
        processor = CLIPProcessor.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever the library says of a folder that is none
        raise ModelError(
            f"{folder} holds no whole CLIP ({type(error).__name__}: {error}). Give a folder with config.json, weights, tokenizer "
            "and preprocessor_config.json, such as a copy of openai/clip-vit-base-patch32, or leave it empty."
        ) from error
    return ClipEye(FolderClip(model.eval(), processor))


def _unit(embedding: np.ndarray) -> np.ndarray:
    return np.asarray(embedding / np.linalg.norm(embedding))
