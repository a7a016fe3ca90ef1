"""A model family made in a test: this file and one table line. It learns in milliseconds and needs no diffusers.

The "picture" is 4 x 4 averaged pixels, the caption a vector from its hash, and the network predicts the noise that was added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from lora_trainer.models.detect import Detection
from lora_trainer.models.family import ModelSettings, Objective, Tensors
from lora_trainer.registry import Entry

WIDTH = 48
ENTRY = Entry("toy", "Toy", "For tests.", f"{__name__}:load", options={"detect": f"{__name__}:detect_toy"})


def make_toy_checkpoint(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    shapes = {"to_q.weight": (WIDTH, WIDTH), "to_v.weight": (WIDTH, WIDTH)}
    weights = {f"toy.{name}": torch.randn(shape, generator=generator) / 7 for name, shape in shapes.items()}
    safetensors.torch.save_file(weights, folder / "toy.safetensors")
    return folder / "toy.safetensors"


def detect_toy(path: Path, header: object) -> Detection | None:
    if path.name != "toy.safetensors":
        return None
    return Detection("toy", path, "original", "epsilon", "it always does", 64)


def load(settings: ModelSettings, detection: Detection) -> ToyModel:
    weights = safetensors.torch.load(settings.base_model.read_bytes())
    return ToyModel(weights, settings)


class ToyModel:
    family, resolution, picture_key, text_key, notes = "toy", 64, "toy-picture", "toy-text", ()

    def __init__(self, weights: Tensors, settings: ModelSettings) -> None:
        net = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH, bias=False) for name in ("to_q", "to_v")})
        net.load_state_dict({name.removeprefix("toy."): tensor for name, tensor in weights.items()})
        self.parts: dict[str, nn.Module] = {"denoiser": net.to(settings.device, settings.dtype)}
        self.modules = tuple(self.parts.values())

    def encode_pictures(self, pixels: Tensor) -> Tensors:
        return {"latents": nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1)}

    def encode_texts(self, captions: Sequence[str]) -> Tensors:
        seeds = [int.from_bytes(hashlib.sha256(caption.encode()).digest()[:6], "big") for caption in captions]
        return {"text": torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds])}

    def size_condition(self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensors:
        return {}

    def collate(self, examples: Sequence[Tensors]) -> Tensors:
        return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}

    def make_draws(
        self, example: Tensors, generator: torch.Generator, objective: Objective, *, level: float | None = None
    ) -> Tensors:
        return {"noise": torch.randn(WIDTH, generator=generator)}

    def losses(self, batch: Tensors, draws: Tensors, objective: Objective) -> Tensor:
        noisy = batch["latents"] + draws["noise"] + 0.1 * batch["text"]
        net = self.parts["denoiser"]
        return (net["to_v"](torch.tanh(net["to_q"](noisy))) - draws["noise"]).float().pow(2).mean(1)

    def lora_targets(self, part: str, selection: Sequence[str]) -> list[str]:
        return ["to_q", "to_v"]

    def webui_key(self, part: str, module_name: str) -> str:
        return f"lora_unet_{module_name}"

    def webui_layers(self) -> dict[str, tuple[int, ...]]:
        return {self.webui_key("denoiser", name): (WIDTH, WIDTH) for name in ("to_q", "to_v")}

    def metadata(self) -> dict[str, str]:
        return {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        self.checkpoints = enabled

    def release_encoders(self, *, keep_text: bool) -> None:
        pass
