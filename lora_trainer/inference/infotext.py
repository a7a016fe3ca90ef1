"""A picture's parameters as text, in the form that the WebUI writes into its PNG files and reads back.

Dropped onto the WebUI's "PNG Info", the text fills in the prompt and every setting, the LoRA's tag included. First comes the
prompt, then the negative prompt on a line of its own, then one line of "Name: value" pairs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_trainer import __version__
from lora_trainer.adapters.tags import LoraUse, write_prompt
from lora_trainer.files import write_bytes
from lora_trainer.inference.loras import lora_hash
from lora_trainer.inference.table import SAMPLERS

if TYPE_CHECKING:
    from lora_trainer.inference.settings import GenerateSettings
    from lora_trainer.models.diffusion import DiffusionModel

PNG_KEY = "parameters"


def describe(
    model: DiffusionModel, settings: GenerateSettings, uses: Sequence[LoraUse] = (), extra: Mapping[str, str] | None = None
) -> str:
    """Returns the parameters of a picture.

    Args:
        uses: the LoRAs that it was drawn with; those of weight 0 are left out.
        extra: further pairs for the last line.
    """
    uses = [use for use in uses if use.unet_weight or use.text_encoder_weight]
    clip_skip = model.settings.clip_skip if model.is_clip_skip_used else 1
    pairs = {
        "Model": model.detection.path.stem,
        "VAE": model.settings.vae.name if model.settings.vae else "",
        "Clip skip": str(clip_skip) if clip_skip > 1 else "",
        "RNG": "CPU",
        "Lora hashes": ", ".join(f"{use.path.stem}: {lora_hash(use.path)}" for use in uses),
        **(extra or {}),
        "Version": f"LoRA trainer {__version__}",
    }
    return describe_settings(write_prompt(settings.prompt, uses), settings, pairs)


def describe_settings(prompt: str, settings: GenerateSettings, pairs: Mapping[str, str]) -> str:
    """Returns the parameters of a picture of which the settings alone are known.

    Args:
        prompt: with its tags.
        pairs: further ones for the last line; empty values are left out.
    """
    sampler = SAMPLERS.get(settings.sampler).options
    known = {
        "Steps": str(settings.steps),
        "Sampler": sampler["sampler"],
        "Schedule type": sampler["schedule_type"],
        "CFG scale": f"{settings.cfg_scale:g}",
        "Seed": str(settings.seed),
        "Size": f"{settings.width}x{settings.height}",
    }
    lines = [prompt]
    if settings.negative_prompt:
        lines.append(f"Negative prompt: {settings.negative_prompt}")
    return add_pairs("\n".join([*lines, ""]), known | dict(pairs))


def add_pairs(parameters: str, pairs: Mapping[str, str]) -> str:
    """Returns parameters with further pairs at the end of their last line."""
    line = ", ".join(f"{name}: {_quote(value)}" for name, value in pairs.items() if value)
    return f"{parameters}, {line}" if parameters and not parameters.endswith("\n") else parameters + line


def save_png(path: Path, picture: Image.Image, parameters: str) -> Path:
    """Writes a picture with its parameters, whole or not at all. Returns where it is, see `files.write_whole`."""
    info = PngInfo()
    # File names may hold what is no character. Pillow writes Latin-1 where that will do, else the chunk for international text.
    info.add_text(PNG_KEY, parameters.encode("utf-8", "replace").decode("utf-8"))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info)
    return write_bytes(path, buffer.getvalue())


def _quote(value: str) -> str:
    """Puts a value in quotes where the WebUI would take it for several."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value
