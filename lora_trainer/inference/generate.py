"""Draws one picture from a prompt, with a loaded base as it stands: with LoRAs applied, or with an adapter in training.

Prompts are taken as they are; the WebUI's syntax for emphasis is not read. The model is left as it was found: training mode,
devices, and the random numbers of everyone else.

Shapes: h and w an eighth of the picture's height and width. Of two items the first is the negative prompt, the second the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from lora_trainer.errors import ConfigError, ModelError
from lora_trainer.inference.settings import SIZE_STEP, GenerateSettings
from lora_trainer.inference.table import SAMPLERS

if TYPE_CHECKING:
    from lora_trainer.adapters.adapter import Adapter
    from lora_trainer.models.diffusion import DiffusionModel
    from lora_trainer.models.family import Tensors

OnStep = Callable[[int, int], None]


@torch.no_grad()
def generate(
    model: DiffusionModel, settings: GenerateSettings, *, conditions: Tensors | None = None, on_step: OnStep | None = None
) -> Image.Image:
    """Returns the picture of a prompt.

    Args:
        model: in whatever state it is; it is in evaluation mode meanwhile and its encoders are on its device.
        conditions: what `encode_prompts` gave for these settings, where it is at hand already.
        on_step: called with the steps done and their number after each. Whatever it raises ends the drawing, and leaves the model
            as it was: that is how to cancel.

    Raises:
        ConfigError: a setting cannot be used.
        ModelError: the numbers overflowed.
    """
    if problems := settings.problems():
        raise ConfigError(problems)
    with evaluating([*model.parts.values(), model.vae]), _autocast(model):
        latents = _sample(model, settings, conditions or encode_prompts(model, settings), on_step)
        with _on_device([model.vae], model.settings.device):
            pixels = model.decode_latents(latents)[0]
    if not torch.isfinite(pixels).all():
        raise ModelError(
            f"The picture came out as not-a-number (the base computes in {str(model.settings.dtype).removeprefix('torch.')}). "
            "If the base alone draws, lower the LoRA's weight and test its file with the command inspect; else take bf16 or fp32."
        )
    return _to_picture(pixels)


def preview(
    model: DiffusionModel, adapter: Adapter, settings: GenerateSettings, *, on_step: OnStep | None = None
) -> tuple[Image.Image, Image.Image]:
    """Returns the picture of the untouched base and that with the adapter in training, from the same noise.

    For a picture with the adapter alone, `generate` will do.
    """
    with adapter.disabled():
        base = generate(model, settings, on_step=on_step)
    return base, generate(model, settings, on_step=on_step)


@torch.no_grad()
def encode_prompts(model: DiffusionModel, settings: GenerateSettings) -> Tensors:
    """Returns what the denoiser is told of the prompts and the size, each tensor with both items, on the model's device."""
    device = model.settings.device
    with evaluating(model.text_encoders), _autocast(model), _on_device(model.text_encoders, device):
        conditions = model.encode_texts([settings.negative_prompt, settings.prompt])
    if "pooled_text" in conditions and not settings.negative_prompt:
        # SDXL was trained with zeros for no caption, and the WebUI gives it zeros for an empty negative prompt.
        for tensor in conditions.values():
            tensor[0] = 0
    size = (settings.width, settings.height)
    for name, tensor in model.size_condition(size, (0, 0), size).items():
        conditions[name] = tensor.expand(2, *tensor.shape)
    return {name: tensor.to(device) for name, tensor in conditions.items()}


def _sample(model: DiffusionModel, settings: GenerateSettings, conditions: Tensors, on_step: OnStep | None) -> Tensor:
    """Returns clean latents, fp32 [1, 4, h, w]."""
    device = model.settings.device
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    scheduler = SAMPLERS.get(settings.sampler).load()(model.schedule)
    scheduler.set_timesteps(settings.steps, device=device)
    shape = (1, 4, settings.height // SIZE_STEP, settings.width // SIZE_STEP)
    latents = torch.randn(shape, generator=generator).to(device) * float(scheduler.init_noise_sigma)
    total = len(scheduler.timesteps)
    for done, timestep in enumerate(scheduler.timesteps, start=1):
        noisy = scheduler.scale_model_input(latents, timestep).expand(2, *shape[1:])
        negative, positive = model.denoise(noisy, timestep.expand(2), conditions).float().chunk(2)
        guided = negative + settings.cfg_scale * (positive - negative)
        latents = scheduler.step(guided, timestep, latents, generator=generator).prev_sample
        if on_step:
            on_step(done, total)
    return latents


def _to_picture(pixels: Tensor) -> Image.Image:
    """Turns [3, H, W] in [-1, 1] into a picture."""
    values = (pixels.clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(values.round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy())


def _autocast(model: DiffusionModel) -> AbstractContextManager[object]:
    """Lets an adapter's fp32 weights meet a base in half precision."""
    settings = model.settings
    if settings.dtype is torch.float32:
        return nullcontext()
    return torch.autocast(settings.device.type, settings.dtype)


@contextmanager
def evaluating(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Within it dropout is off; afterwards each module is in the mode in which it was."""
    before = [(module, module.training) for root in roots for module in root.modules()]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


@contextmanager
def _on_device(modules: list[nn.Module], device: torch.device) -> Iterator[None]:
    """Within it the modules are on the device; training keeps those that it does not need on the CPU."""
    before = [next(module.parameters()).device for module in modules]
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module, home in zip(modules, before, strict=True):
            module.to(home)
