"""Stand-ins for what the demo trains on: a base model of random weights, which draws only noise, and a few painted landscapes.

They show that everything works, not what a LoRA learns.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file

from lora_trainer.files import write_whole
from lora_trainer.models import convert
from lora_trainer.models.sizes import TextSizes, UNetSizes, VaeSizes

UNET = UNetSizes(
    channels=(32, 64), layers=2, depths=(1, 0), mid_depth=1, context_width=64, heads=(8, 8), uses_linear_projection=False
)
VAE = VaeSizes(channels=(32, 32, 32, 32), layers=1)
TEXT = TextSizes(width=64, layers=2, heads=1, inner_width=128, vocabulary=49408, positions=77, activation="quick_gelu")
RESOLUTION = 64
NUM_PICTURES = 12


def write_random_base(path: Path) -> Path:
    """Writes a tiny SD1 checkpoint in the original layout, about 10 MB; the same bytes each time. Returns where it is."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**UNET.diffusers_config()).state_dict()
        vae = AutoencoderKL(**VAE.diffusers_config()).state_dict()
        text = CLIPTextModel(CLIPTextConfig(**TEXT.transformers_config())).state_dict()
    parts = {
        "model.diffusion_model": convert.unet_to_original(unet, UNET),
        "first_stage_model": convert.vae_to_original(vae, VAE),
        "cond_stage_model.transformer": convert.clip_to_original(text, TEXT),
    }
    tensors = {
        f"{prefix}.{name}": tensor.half().contiguous()
        for prefix, part in parts.items()
        for name, tensor in part.items()
        if not name.endswith("position_ids")
    }
    return write_whole(path, lambda temporary: save_file(tensors, temporary))


def paint_pictures(folder: Path) -> Path:
    """Writes small landscapes in grey washes, with their captions beside them. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES):
        draws = random.Random(number)
        picture = Image.new("L", (RESOLUTION, RESOLUTION), 236)
        pen = ImageDraw.Draw(picture)
        num_ridges = draws.randint(1, 3)
        for ridge in range(num_ridges):
            base = RESOLUTION * (5 + ridge) // 8
            line = [(x, base - draws.randint(4, 26 - 6 * ridge)) for x in range(0, RESOLUTION + 16, 16)]
            pen.polygon([(0, RESOLUTION), *line, (RESOLUTION, RESOLUTION)], fill=190 - 60 * ridge)
        has_sun = number % 2 == 0
        if has_sun:
            left = draws.randint(4, RESOLUTION - 16)
            pen.ellipse((left, 5, left + 10, 15), fill=90)
        path = folder / f"landscape_{number + 1:02d}.png"
        picture.filter(ImageFilter.GaussianBlur(0.8)).convert("RGB").save(path)
        caption = f"{('one ridge', 'two ridges', 'three ridges')[num_ridges - 1]} of mountains{', the sun above' * has_sun}"
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder
