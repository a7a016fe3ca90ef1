"""Appends to captions the terms that fit a picture best, of lists that the user gives: medium, style, era, composition.

CLIP (arXiv 2103.00020) says how near a picture and a term are; of each list the nearest terms are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from transformers.models.clip.modeling_clip import CLIPModel
from transformers.models.clip.processing_clip import CLIPProcessor

from lora_trainer.captioning.captioner import Captioner, CaptionerSettings
from lora_trainer.dataset.bulk import has_word
from lora_trainer.errors import ModelError

_BATCH = 64  # terms encoded at once


def load(
    settings: CaptionerSettings, captioner: Captioner, word_lists: Mapping[str, Sequence[str]], *, num_terms: int = 1
) -> RankedCaptioner:
    """Returns the captioner with terms behind its captions; nothing is read before it is entered.

    Args:
        settings: with the folder of a CLIP as `model`, its device and dtype.
        captioner: writes what the terms are appended to; it is entered and left with this one.
        word_lists: terms by what they are about.
        num_terms: how many of each list are appended.
    """
    return RankedCaptioner(settings, captioner, word_lists, num_terms)


class RankedCaptioner:
    """See `captioner.Captioner` and `load`."""

    def __init__(
        self, settings: CaptionerSettings, captioner: Captioner, word_lists: Mapping[str, Sequence[str]], num_terms: int
    ) -> None:
        self._settings, self._captioner, self._num_terms = settings, captioner, num_terms
        self._lists = {about: list(terms) for about, terms in word_lists.items()}
        self._model: Any = None
        self._processor: Any = None
        self._terms: dict[str, torch.Tensor] = {}

    def __enter__(self) -> RankedCaptioner:
        """Loads CLIP, encodes the terms, and enters the captioner.

        Raises:
            ModelError: a model is not there, or is another kind of model.
        """
        folder = self._settings.model
        try:
            self._processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
            model = CLIPModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"{folder} cannot be loaded as a CLIP model: {reason} A folder of one holds config.json, "
                "preprocessor_config.json, vocab.json, merges.txt and model.safetensors or pytorch_model.bin."
            ) from error
        self._model = model.to(self._settings.device, self._settings.dtype).eval().requires_grad_(False)
        self._terms = {about: self._encode_terms(terms) for about, terms in self._lists.items()}
        self._captioner.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._model = self._processor = None
        self._terms = {}
        self._captioner.__exit__(kind, error, trace)

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Returns a caption for each RGB picture, in order, with the best terms that it does not have yet behind it."""
        captions = self._captioner.caption(pictures)
        return [_append(caption, terms) for caption, terms in zip(captions, self.rank(pictures), strict=True)]

    def move(self, device: torch.device) -> None:
        self._model = self._model.to(device)
        self._terms = {about: terms.to(device) for about, terms in self._terms.items()}
        self._captioner.move(device)

    def rank(self, pictures: Sequence[Image.Image]) -> list[list[str]]:
        """Returns for each picture the best terms of each list, in the order of the lists."""
        settings = self._settings
        pixels = self._processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found = self._model.get_image_features(pixel_values=pixels.to(settings.device, settings.dtype))
        near = _normal(found)  # [P, D]: P pictures, D dimensions of CLIP's common space
        best: list[list[str]] = [[] for _ in pictures]
        for about, terms in self._lists.items():
            order = (near @ self._terms[about].T).argsort(dim=-1, descending=True, stable=True)
            for row, numbers in enumerate(order[:, : self._num_terms].tolist()):
                best[row] += [terms[number] for number in numbers]
        return best

    def _encode_terms(self, terms: list[str]) -> torch.Tensor:
        """Returns the terms in CLIP's common space, `[T, D]`, each of length 1."""
        parts = []
        for start in range(0, len(terms), _BATCH):
            tokens = self._processor(text=terms[start : start + _BATCH], return_tensors="pt", padding=True, truncation=True)
            inputs = {name: tokens[name].to(self._settings.device) for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                parts.append(_normal(self._model.get_text_features(**inputs)))
        return torch.cat(parts)


def _normal(found: Any) -> torch.Tensor:
    features = getattr(found, "pooler_output", found)  # from transformers 5 on they come with what they were made of
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)


def _append(caption: str, terms: Sequence[str]) -> str:
    for term in terms:
        if not has_word(caption, term):
            caption = f"{caption}, {term}" if caption else term
    return caption
