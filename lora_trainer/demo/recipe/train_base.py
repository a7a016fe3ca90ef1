"""Trains the miniature's denoiser and text encoder together, from nothing, on latents of drawn scenes.

Stable Diffusion 1's own classes, structure and noise schedule with small widths. As the large one was, it is trained at half the
size first (8 x 8 latents cost a quarter), where it learns words, colours and places, then at full size, and at last on shapes.

    python -m lora_trainer.demo.recipe.train_base --work DIR [--minutes 88]
    python -m lora_trainer.demo.recipe.train_base --work DIR --shapes [--minutes 46]

Letters in shapes: B items, h and w the latents' sides, T tokens (77 at most).
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from lora_trainer.models.text import CLIP_PADDING, tokenize_captions

from .paint import paint
from .scenes import caption, draw_scene
from .train_vae import load_or_start, to_tensor

log = logging.getLogger(__name__)
CAPTIONS_PER_SCENE = 4
PROMPTS = (
    "a red circle on a white background",
    "a blue star on a yellow background",
    "a green heart in the desert",
    "a purple cross above the sea",
    "blue mountains behind a lake with pine trees and a red boat at sunset",
    "a green field with a house with a red roof and the sun by day",
    "snowy mountains behind a lake with the moon at night",
    "green hills behind a green field with autumn trees at dawn",
)


def build_unet() -> UNet2DConditionModel:
    """Returns the untrained denoiser.

    Two layers a block and no attention in the deepest: the WebUI's LoRA names assume both. Widths are multiples of the first: the
    original layout's configuration knows only such.
    """
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,  # the number of heads, under diffusers' historical name
    )
    # As in the original code every residual branch starts at zero; diffusers leaves that to whoever trains from nothing.
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            for parameter in module.parameters():
                torch.nn.init.zeros_(parameter)
    return unet


def build_text_encoder() -> CLIPTextModel:
    """Returns the untrained text encoder: CLIP with three layers of width 128."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=2,
            projection_dim=128,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    # The WebUI divides by the mean of the output; with the usual bias of zero that mean would be nothing.
    torch.nn.init.constant_(dict(encoder.named_parameters())[_final_norm(encoder) + ".bias"], 0.1)
    return encoder


def _final_norm(encoder: CLIPTextModel) -> str:
    return next(name for name, _ in encoder.named_modules() if name.endswith("final_layer_norm"))


def build_schedule() -> DDIMScheduler:
    """Returns Stable Diffusion 1's schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tokenize(texts: list[str]) -> torch.Tensor:
    """Returns token ids `[B, 77]`, as the LoRA training and the WebUI make them."""
    return tokenize_captions(texts, CLIP_PADDING)[:, 0]


def load_or_encode(work: Path, vae: AutoencoderKL, count: int) -> torch.Tensor:
    """Returns means and log variances of the first scenes' latents, `[count, 8, 16, 16]`, unscaled; they are kept in `work`."""
    path = work / "latents.pt"
    if path.exists():
        return torch.load(path)
    parts: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, count, 8):
            pictures = torch.stack([to_tensor(paint(draw_scene(seed))) for seed in range(start, min(start + 8, count))])
            parts.append(vae.encode(pictures).latent_dist.parameters)
            if start % 800 == 0:
                log.info("encoded %d scenes", start)
    moments = torch.cat(parts)
    torch.save(moments, path)
    return moments


def sample(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    vae: AutoencoderKL,
    ids: torch.Tensor,
    scale: float,
    seed: int = 0,
    steps: int = 25,
) -> list[Image.Image]:
    """Returns one picture per row of `ids`, the last row of which is the empty prompt and gives none. Guidance 4."""
    schedule = build_schedule()
    schedule.set_timesteps(steps)
    latents = torch.randn(len(ids) - 1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        hidden = encoder(ids).last_hidden_state
        hidden = torch.cat([hidden[:-1], hidden[-1:].expand(len(ids) - 1, -1, -1)])
        for timestep in schedule.timesteps:
            wanted, empty = unet(latents.repeat(2, 1, 1, 1), timestep, hidden).sample.chunk(2)
            latents = schedule.step(empty + 4 * (wanted - empty), timestep, latents).prev_sample
        pixels = torch.cat([vae.decode(part / scale).sample for part in latents.split(8)])
    return [Image.fromarray(p) for p in ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]


class Trainer:
    """The two models in training, their moving average, and the data in memory."""

    def __init__(self, work: Path, num_scenes: int) -> None:
        torch.manual_seed(0)
        self.work = work
        self.vae = load_or_start(work).eval()
        rng = np.random.default_rng(5)
        scenes = [draw_scene(seed) for seed in range(num_scenes)]
        self.with_shape = torch.tensor([index for index, scene in enumerate(scenes) if scene.shape])
        texts = [caption(scene, rng) for scene in scenes for _ in range(CAPTIONS_PER_SCENE)]
        self.ids = tokenize(texts).view(num_scenes, CAPTIONS_PER_SCENE, 77)
        self.empty = tokenize([""])
        self.moments = load_or_encode(work, self.vae, num_scenes)
        self.scale = 1 / float(self.moments[:, :4].std())
        self.models = torch.nn.ModuleDict({"unet": build_unet(), "encoder": build_text_encoder()})
        self.average = copy.deepcopy(self.models).requires_grad_(False)
        self.alphas = build_schedule().alphas_cumprod
        self.stage, self.step, self.seconds = "all", 0, 0.0
        self._begin()
        if (work / "base.pt").exists():
            self._resume(torch.load(work / "base.pt"))

    def _begin(self) -> None:
        """Starts from the averaged weights with a fresh optimizer."""
        self.models.load_state_dict(self.average.state_dict())
        vocabulary = [p for name, p in self.models.named_parameters() if "token_embedding" in name]
        rest = [p for name, p in self.models.named_parameters() if "token_embedding" not in name]
        # No decay on the vocabulary: words that never occur would be drawn to zero, and a user's prompt may hold any of them.
        groups = [{"params": rest, "weight_decay": 0.01}, {"params": vocabulary, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)

    def loss(self, batch_size: int, *, half_size: bool, full_length: bool) -> torch.Tensor:
        """Returns the noise prediction's error on random scenes, weighted by min-SNR (arXiv 2303.09556, gamma 5).

        In the stage of the shapes four scenes in five show one, little time goes into noise too faint to hide it, and noise that
        hides all but it weighs more: which shape it becomes is decided there.
        """
        on_shapes = self.stage == "shapes"
        rows = torch.randint(len(self.ids), (batch_size,))
        if on_shapes:
            shapes = self.with_shape[torch.randint(len(self.with_shape), (batch_size,))]
            rows = torch.where(torch.rand(batch_size) < 0.6, shapes, rows)
        mean, logvar = self.moments[rows].chunk(2, dim=1)
        latents = (mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)) * self.scale
        if half_size:  # the latents resemble a thumbnail, so their means are those of a smaller picture
            latents = F.avg_pool2d(latents, 2)
        ids = self.ids[rows, torch.randint(CAPTIONS_PER_SCENE, (batch_size,))]
        ids = torch.where(torch.rand(batch_size, 1) < 0.1, self.empty, ids)
        if not full_length:  # the padding at the end is cheap to learn later
            ids = ids[:, : int((ids != 49407).sum(1).max()) + 1]
        share = (torch.arange(batch_size) + torch.rand(batch_size)) / batch_size
        if on_shapes:
            share = torch.where(share < 0.1, share * 1.5, 0.15 + (share - 0.1) / 0.9 * 0.85)
        timesteps = (share * 1000).long()
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy_latents = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        predicted = self.models["unet"](noisy_latents, timesteps, self.models["encoder"](ids).last_hidden_state).sample
        snr = (alpha / (1 - alpha)).flatten()
        weight = (snr + 0.25 * on_shapes).clamp(max=5) / snr
        return (F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3)) * weight).mean()

    def train(self, stage: str, minutes: float, learning_rate: float = 1e-3) -> None:
        """Trains until `minutes` of processor time are spent on the stage, counted over interruptions; saves every three.

        Args:
            stage: "all", from nothing; or "shapes", from the averaged weights of the first.
        """
        if stage != self.stage:
            self._begin()
            self.stage, self.step, self.seconds = stage, 0, 0.0
        losses: list[float] = []
        begun, before, saved = time.process_time(), self.seconds, time.process_time()
        while (done := self.seconds / (60 * minutes)) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate * min(1, (self.step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
            half_size = stage == "all" and done < 0.5
            loss = self.loss(64 if half_size else 24, half_size=half_size, full_length=done > 0.85)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.models.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.models.parameters()), 1 - decay)
            losses.append(loss.item())
            self.seconds = before + time.process_time() - begun
            if time.process_time() - saved > 180:
                saved = time.process_time()
                log.info("step %d, %.0f %%: loss %.4f", self.step, 100 * done, np.mean(losses))
                losses.clear()
                self.save()
                self.show(self.work / f"samples-{stage}-{self.step:05d}.png")
        self.save()
        self.show(self.work / "samples.png")

    def show(self, path: Path) -> None:
        """Writes a row of sampled pictures, one per prompt of `PROMPTS`."""
        ids = tokenize([*PROMPTS, ""])
        pictures = sample(self.average["unet"], self.average["encoder"], self.vae, ids, self.scale)
        row = Image.new("RGB", (128 * len(pictures), 128))
        for index, picture in enumerate(pictures):
            row.paste(picture, (128 * index, 0))
        row.save(path)

    def save(self) -> None:
        """Writes everything that a continued run needs, whole or not at all."""
        state = {
            "models": self.models.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        state |= {"stage": self.stage, "step": self.step, "seconds": self.seconds, "scale": self.scale}
        torch.save(state, self.work / "base.tmp")
        (self.work / "base.tmp").replace(self.work / "base.pt")

    def _resume(self, state: dict[str, Any]) -> None:
        self.models.load_state_dict(state["models"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage, self.step, self.seconds, self.scale = state["stage"], state["step"], state["seconds"], state["scale"]
        torch.manual_seed(self.step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shapes", action="store_true", help="the second stage")
    parser.add_argument("--minutes", type=float, help="of processor time; 88, and 46 for the second stage")
    parser.add_argument("--scenes", type=int, default=6_000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stage, minutes = ("shapes", 46) if arguments.shapes else ("all", 88)
    Trainer(arguments.work, arguments.scenes).train(stage, arguments.minutes or minutes)
