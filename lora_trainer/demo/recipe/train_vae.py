"""Trains the miniature's picture compressor: diffusers' `AutoencoderKL`, factor 8, four latent channels.

The full-size autoencoder has seen photographs and drawings of every kind, so nobody's style is foreign to it. Ours sees the
base's scenes, and the same scenes altered in ways that are no style of the data sets: greyscale, turned colours, blur, grain,
reversed tones and outlines. So it carries tones, soft edges and thin lines of pictures that the UNet and the text encoder have
never met, and what a LoRA learns of them it learns itself.

Only the decoder is trained. The encoder stays as `thumbnail.py` sets it: a picture's means and one difference, to which no
picture is foreign. So the denoiser can be trained at the same time.

    python -m lora_trainer.demo.recipe.train_vae --work DIR [--minutes 30]
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image, ImageFilter, ImageOps

from .paint import paint
from .scenes import draw_scene
from .thumbnail import start_as_thumbnail

log = logging.getLogger(__name__)
UNSEEN = 10_000_000  # seeds from here on are never trained on
LATENT_NOISE = 0.05  # standard deviation, where that of the latents is 1


def build_vae() -> AutoencoderKL:
    """Returns the untrained autoencoder.

    Norms have 32 groups because the original layout's configuration cannot say otherwise. So no width is below 64: with one
    channel a group the last norm would take the mean colour out of every picture. There are no residual blocks on the encoder's
    levels, and one on each of the decoder's: full-size convolutions are what the time of a small machine goes into.
    """
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 64, 64, 64),
        layers_per_block=0,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=128,
    )


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """Returns the picture as `[3, H, W]` in -1 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)


def alter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns the picture as it is half of the time, else with other tones and textures."""
    if rng.random() < 0.5:
        return picture
    kind = rng.integers(5)
    if kind == 0:
        grey = np.asarray(ImageOps.grayscale(picture), dtype=np.float32) / 255
        low, high = np.sort(rng.uniform(0, 1, 2))
        picture = Image.fromarray(np.uint8(255 * (low + (high - low) * grey ** rng.uniform(0.6, 1.8)))).convert("RGB")
    elif kind == 1:
        mix = np.eye(3) + rng.normal(0, 0.35, (3, 3))
        turned = (np.asarray(picture, dtype=np.float32) - 128) @ mix + 128 + rng.normal(0, 20, 3)
        picture = Image.fromarray(np.uint8(np.clip(turned, 0, 255)))
    elif kind == 2:
        picture = ImageOps.invert(picture).filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))
    elif kind == 3:
        edges = ImageOps.grayscale(picture.filter(ImageFilter.FIND_EDGES)).point(lambda v: min(255, v * 3))
        dark, light = rng.integers(0, 256, (2, 3))
        picture = ImageOps.colorize(edges, tuple(map(int, dark)), tuple(map(int, light)))
    if kind == 4 or rng.random() < 0.4:
        pixels = np.asarray(picture, dtype=np.float32)
        grain = rng.normal(0, rng.uniform(2, 8), pixels.shape[:2])[..., None]
        picture = Image.fromarray(np.uint8(np.clip(pixels + grain, 0, 255)))
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    return picture


def draw_batch(step: int, batch_size: int) -> torch.Tensor:
    """Returns `[B, 3, 128, 128]`: freshly drawn scenes, always whole, for the norms see a whole picture in use, too."""
    rng = np.random.default_rng([step, 7])
    return torch.stack([to_tensor(alter(paint(draw_scene(step * batch_size + i)), rng)) for i in range(batch_size)])


def reconstruction_psnr(vae: AutoencoderKL, pictures: list[Image.Image]) -> float:
    """Returns the mean peak signal-to-noise ratio in dB over the pictures, each through the latents' mean."""
    values = []
    with torch.no_grad():
        for picture in pictures:
            x = to_tensor(picture)[None]
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
            values.append(10 * math.log10(4 / float(F.mse_loss(x, y))))
    return float(np.mean(values))


def load_or_start(work: Path) -> AutoencoderKL:
    """Returns the autoencoder kept in `work`; where there is none, one at its start, which is kept."""
    torch.manual_seed(0)
    vae = build_vae()
    if (work / "vae.pt").exists():
        vae.load_state_dict(torch.load(work / "vae.pt"))
    else:
        start_as_thumbnail(vae, torch.stack([to_tensor(paint(draw_scene(seed))) for seed in range(48)]))
        _save(vae, work)
    return vae


def train(work: Path, minutes: float, *, learning_rate: float = 2e-4, batch_size: int = 2) -> None:
    """Trains the decoder for `minutes` of processor time and writes `vae.pt` into `work` every one."""
    vae, unseen = load_or_start(work), [paint(draw_scene(UNSEEN + i)) for i in range(6)]
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    average = torch.optim.swa_utils.AveragedModel(vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98))
    start = saved = time.process_time()
    for step in range(10**9):
        done = (time.process_time() - start) / (60 * minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 40) * (0.03 + 0.97 * (1 + math.cos(math.pi * done)) / 2)
        x = draw_batch(step, batch_size)
        with torch.no_grad():
            latents = vae.encode(x).latent_dist.mean
        # What a denoiser draws is never quite a latent of a picture; a little noise makes the decoder forgive that.
        error = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample - x
        loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * _gradient_size(error)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update_parameters(vae)
        if time.process_time() - saved > 60:
            saved = time.process_time()
            _save(average.module, work)
            psnr = reconstruction_psnr(average.module, unseen)
            log.info("step %d, %.0f %%: L1 %.4f, PSNR %.2f dB", step, 100 * done, error.abs().mean().item(), psnr)
    _save(average.module, work)
    log.info("end: PSNR %.2f dB", reconstruction_psnr(average.module, unseen))


def _gradient_size(error: torch.Tensor) -> torch.Tensor:
    """Returns how far the differences of neighbouring pixels are off: keeps edges sharp where a plain loss blurs them."""
    return sum((torch.diff(error, dim=d).abs().mean() for d in (2, 3)), torch.zeros(()))


def _save(vae: torch.nn.Module, work: Path) -> None:
    torch.save(vae.state_dict(), work / "vae.tmp")
    (work / "vae.tmp").replace(work / "vae.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.work.mkdir(parents=True, exist_ok=True)
    train(arguments.work, arguments.minutes)
