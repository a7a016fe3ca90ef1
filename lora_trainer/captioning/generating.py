"""What BLIP and BLIP-2 have in common: a model of transformers that generates words from pictures, with its processor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image

from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.errors import ModelError


class GeneratingCaptioner(ABC):
    """A captioner by transformers, see `captioner.Captioner`. Its weights are frozen, in the precision of the settings.

    Attributes:
        label: what it is called in messages.
        files: what a folder of one holds, for messages.
        needs_text: whether it is given a text without a prompt, too: an empty one.
    """

    label: str
    files: str
    needs_text = False

    def __init__(self, settings: CaptionerSettings) -> None:
        self.settings = settings
        self._model: Any = None
        self._processor: Any = None

    @abstractmethod
    def build(self) -> tuple[Any, Any]:
        """Returns model and processor from the folder of the settings."""

    def __enter__(self) -> GeneratingCaptioner:
        """Loads the model.

        Raises:
            ModelError: it is not there, or is another kind of model.
        """
        settings = self.settings
        try:
            model, self._processor = self.build()
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ModelError(self._explain(error)) from error
        self._model = model.to(settings.device, settings.dtype).eval().requires_grad_(False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._model = self._processor = None
        if self.settings.device.type == "cuda":
            torch.cuda.empty_cache()

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Returns a caption for each RGB picture, in order."""
        settings = self.settings
        texts = {"text": [settings.prompt] * len(pictures)} if settings.prompt or self.needs_text else {}
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
        return [self.clean(text) for text in self._processor.batch_decode(rows, skip_special_tokens=True)]

    def move(self, device: torch.device) -> None:
        self._model = self._model.to(device)

    def clean(self, text: str) -> str:
        """Returns a caption as it is saved."""
        return " ".join(text.split())

    def _explain(self, error: Exception) -> str:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        model = self.settings.model
        if Path(model).exists():
            return f"{model} cannot be loaded as a {self.label} captioner: {reason} A folder of one holds {self.files}."
        return f"{model} is not a folder here: {reason} Give a folder with {self.files} as --model."
