"""What the benchmarks work on: a base model of random weights in SD1's shape, pictures, settings, and the bare loop.

The bare loop is what one would write in an evening: latents and embeddings in lists, the UNet, mean squared error, clipping,
fused AdamW. It knows nothing of captions, crops, resume, guards or files; the trainer is measured against it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_trainer.config.parse import parse_config
from lora_trainer.config.schema import TrainConfig
from lora_trainer.models import convert
from lora_trainer.models.checkpoint import build_empty
from lora_trainer.models.diffusion import DiffusionModel
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.sizes import TextSizes, UNetSizes, VaeSizes
from lora_trainer.models.table import load_model

RANK = 16
LEARNING_RATE = 1e-4
MAX_GRAD_NORM = 1.0
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@contextmanager
def denoiser_wrapped(wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within it, the forward of the denoiser's class and `Tensor.backward` are what `wrap` makes of them."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    forward, backward = UNet2DConditionModel.forward, Tensor.backward
    UNet2DConditionModel.forward, Tensor.backward = wrap(forward), wrap(backward)
    try:
        yield
    finally:
        UNet2DConditionModel.forward, Tensor.backward = forward, backward


@dataclass(frozen=True)
class Size:
    """How large the work is.

    Attributes:
        unet, vae, text: of the base model.
        picture_side: in pixels, of pictures and of training.
        batch_size: pictures per step.
        second_text: SDXL's second text encoder.
    """

    unet: UNetSizes
    vae: VaeSizes
    text: TextSizes
    picture_side: int
    batch_size: int = 2
    second_text: TextSizes | None = None


def _unet(channels: tuple[int, ...], context_width: int) -> UNetSizes:
    depths = (*(1 for _ in channels[1:]), 0)
    heads = (8,) * len(channels)
    return UNetSizes(channels, 2, depths, mid_depth=1, context_width=context_width, heads=heads, uses_linear_projection=False)


def _text(width: int) -> TextSizes:
    return TextSizes(width, 1, max(1, width // 64), 2 * width, vocabulary=49408, positions=77, activation="quick_gelu")


SMALL_VAE = VaeSizes(channels=(32, 32, 32, 32), layers=1)
SD1_VAE = VaeSizes(channels=(128, 256, 512, 512), layers=2)
# SD1's UNet at two fifths of its width: 142 million parameters, every layer of it.
FULL = Size(_unet((128, 256, 512, 512), 768), SMALL_VAE, _text(768), picture_side=256)
TINY = Size(_unet((32, 64), 64), SMALL_VAE, _text(64), picture_side=64)


SD1_UNET = _unet((320, 640, 1280, 1280), 768)
SDXL_UNET = UNetSizes(
    channels=(320, 640, 1280),
    layers=2,
    depths=(0, 2, 10),
    mid_depth=10,
    context_width=2048,
    heads=(5, 10, 20),
    uses_linear_projection=True,
    condition_width=1280 + 6 * 256,
)


CLIP = TextSizes(768, 12, 12, 3072, vocabulary=49408, positions=77, activation="quick_gelu")
OPEN_CLIP = TextSizes(1280, 32, 20, 5120, vocabulary=49408, positions=77, activation="gelu", pooled_width=1280)
SD1 = Size(SD1_UNET, SD1_VAE, CLIP, picture_side=512, batch_size=1)
SDXL = Size(SDXL_UNET, SD1_VAE, CLIP, picture_side=1024, batch_size=1, second_text=OPEN_CLIP)


def count_parameters(size: Size) -> int:
    """Returns the number of the UNet's weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: nn.Module = build_empty(lambda: UNet2DConditionModel(**size.unet.diffusers_config()))
    return sum(parameter.numel() for parameter in unet.parameters())


def write_base(path: Path, size: Size) -> Path:
    """Writes a checkpoint of random weights in the original single-file layout, fp16. Returns where it is."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    unet = _random_weights(lambda: UNet2DConditionModel(**size.unet.diffusers_config()))
    vae = _random_weights(lambda: AutoencoderKL(**size.vae.diffusers_config()))
    text = _random_weights(lambda: CLIPTextModel(CLIPTextConfig(**size.text.transformers_config())))
    is_xl = size.second_text is not None
    first_text = "conditioner.embedders.0.transformer" if is_xl else "cond_stage_model.transformer"
    parts = {
        "model.diffusion_model": convert.unet_to_original(unet, size.unet),
        "first_stage_model": convert.vae_to_original(vae, size.vae),
        first_text: convert.clip_to_original(text, size.text),
    }
    if size.second_text is not None:
        config = CLIPTextConfig(**size.second_text.transformers_config())
        second = _random_weights(lambda: CLIPTextModelWithProjection(config))
        second = {name if name.startswith("text_") else f"text_model.{name}": tensor for name, tensor in second.items()}
        parts["conditioner.embedders.1.model"] = convert.open_clip_to_original(second, size.second_text)
    tensors = {
        f"{prefix}.{name}": tensor.half().contiguous()
        for prefix, part in parts.items()
        for name, tensor in part.items()
        if not name.endswith("position_ids")
    }
    save_file(tensors, path)
    return path


def _random_weights(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Returns fp16 weights of a module by which numbers stay of one size: norms 1, biases 0, the rest by its inputs."""
    weights = {}
    for name, empty in build_empty(make).named_parameters():
        if empty.dim() == 1:
            weights[name] = torch.full(empty.shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.float16)
        else:
            scale = 0.02 if "embedding." in name and "time" not in name else empty[0].numel() ** -0.5
            weights[name] = torch.empty(empty.shape).normal_(std=scale).half()
    return weights


def write_pictures(folder: Path, num_pictures: int, side: int) -> Path:
    """Writes smooth coloured pictures as PNG with captions, so that decoding costs about what photographs cost."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_pictures):
        draws = np.random.default_rng(number)
        coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse).astype(np.int16) + draws.integers(-6, 7, (side, side, 3))
        path = folder / f"{number:04d}.png"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)
        path.with_suffix(".txt").write_text(
            f"picture {number}, {random.Random(number).choice('abcdef')} colours", encoding="utf-8"
        )
    return folder


def make_config(folder: Path, size: Size, *, num_pictures: int, num_steps: int, **changes: str) -> TrainConfig:
    """Writes base and pictures below `folder` where they are missing, and returns the settings of a run on them.

    Args:
        folder: for everything that is written.
        num_pictures, num_steps: of the run.
        changes: other settings, as text.
    """
    base, pictures = folder / "base.safetensors", folder / f"pictures-{num_pictures}"
    if not base.exists():
        write_base(base, size)
    if not pictures.exists():
        write_pictures(pictures, num_pictures, size.picture_side)
    values = {
        "train_data_dir": str(pictures),
        "base_model": str(base),
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "cache"),
        "resolution": str(size.picture_side),
        "batch_size": str(size.batch_size),
        "max_train_steps": str(num_steps),
        "lora_rank": str(RANK),
        "learning_rate": str(LEARNING_RATE),
        "max_grad_norm": str(MAX_GRAD_NORM),
        "target_modules": "attention",
        "precision": "fp32",
        "device": "cpu",
        "save_steps": "0",
    }
    return parse_config({**values, **changes})


def load_base(config: TrainConfig, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    """Loads a run's base model as the trainer does."""
    model = load_model(ModelSettings(base_model=config.base_model, dtype=dtype, device=torch.device(config.device)))
    assert isinstance(model, DiffusionModel)
    return model


class WrittenLora(nn.Module):
    """A LoRA around a linear layer, written by hand: the least that it can cost.

    Args:
        base: the layer, frozen.
        scale: alpha / rank.
    """

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.Linear(base.in_features, RANK, bias=False, device=base.weight.device)
        self.up = nn.Linear(RANK, base.out_features, bias=False, device=base.weight.device)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base(x) + self.up(self.down(x) * self.scale)
        return output


def inject_by_peft(unet: nn.Module) -> list[nn.Parameter]:
    """Puts PEFT's own LoRA layers beside the attention projections. Returns their weights."""
    unet.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(PROJECTIONS)), unet)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def inject_by_hand(unet: nn.Module) -> list[nn.Parameter]:
    """Puts `WrittenLora` layers at the same places. Returns their weights."""
    unet.requires_grad_(False)
    names = [name for name, _ in unet.named_modules() if name.endswith(tuple(f".{end}" for end in PROJECTIONS))]
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, WrittenLora(unet.get_submodule(name), 2.0))
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


class BareLoop:
    """Steps of training without a trainer around them.

    Args:
        unet: with LoRA layers in it.
        parameters: of those.
        batches: latents [B, 4, h, w] and embeddings [B, T, C], taken in turn.
        autocast: dtype of the forward pass, None for fp32 throughout.
    """

    def __init__(
        self,
        unet: nn.Module,
        parameters: list[nn.Parameter],
        batches: Sequence[tuple[Tensor, Tensor]],
        autocast: torch.dtype | None = None,
    ) -> None:
        self.unet, self.parameters, self.batches, self.autocast = unet.train(), parameters, batches, autocast
        self.optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
        device = parameters[0].device
        alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=device) ** 2, 0)[:, None, None, None]
        self.signal, self.share = alphas.sqrt(), (1 - alphas).sqrt()
        self.num_steps = 0

    def step(self) -> float:
        """Takes one step. Returns its loss."""
        latents, text = self.batches[self.num_steps % len(self.batches)]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device)
        noisy = self.signal[timesteps] * latents + self.share[timesteps] * noise
        dtype = next(self.unet.parameters()).dtype
        with torch.autocast(latents.device.type, self.autocast, enabled=self.autocast is not None):
            prediction = self.unet(noisy.to(dtype), timesteps, text.to(dtype)).sample
        loss = nn.functional.mse_loss(prediction.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1
        return loss.item()


def make_batches(model: DiffusionModel, num_batches: int, size: Size) -> list[tuple[Tensor, Tensor]]:
    """Returns made-up latents and real embeddings in the shapes of a run on pictures of that size."""
    side = size.picture_side // 8
    generator = torch.Generator().manual_seed(0)
    device = model.settings.device
    batches = []
    for number in range(num_batches):
        latents = torch.randn((size.batch_size, 4, side, side), generator=generator)
        captions = [f"picture {number} {index}" for index in range(size.batch_size)]
        with torch.no_grad():
            batches.append((latents.to(device), model.encode_texts(captions)["text"]))
    return batches
