"""Draws pictures: here in one colour, and only where the model is on its device."""

from __future__ import annotations

import re
from typing import Any

from modules import sd_models, shared
from PIL import Image

requests: list[Any] = []


class StableDiffusionProcessingTxt2Img:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Processed:
    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images


def process_images(request: Any) -> Processed:
    requests.append(request)
    model = sd_models.model_data.sd_model
    if not model.is_on_device and not model.lowvram:
        raise RuntimeError("Expected all tensors to be on the same device")
    if request.steps > 150:
        raise ValueError("too many steps")
    assert shared.state.job
    picture = Image.new("RGB", (request.width, request.height), "navy")
    prompt = re.sub("<lora:[^>]*>", "", request.prompt)  # as the real one writes it
    picture.info["parameters"] = f"{prompt}\nSteps: {request.steps}, Seed: {request.seed}"
    return Processed([picture])
