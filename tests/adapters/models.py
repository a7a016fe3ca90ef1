"""Tiny real base models with a LoRA in them, and what they put out, for the tests of adapters and of the WebUI's contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.adapters.table import ADAPTERS
from lora_trainer.models.family import ModelSettings, Objective, TrainableModel
from lora_trainer.models.table import load_model
from tests.tiny import make_checkpoint

CAPTIONS = ("guofeng ink, a mountain", "a boat on the water")
EVERYTHING = ("all_linear", "conv")


def load(path: Path, dtype: torch.dtype = torch.float32) -> TrainableModel:
    return load_model(ModelSettings(path, dtype=dtype))


def save_changed(family: str, folder: Path, tensors: dict[str, Tensor]) -> Path:
    """Writes a tiny checkpoint of a family with other tensors."""
    path = make_checkpoint(family, folder)
    path.write_bytes(safetensors.torch.save(tensors))
    return path


def inject(
    model: TrainableModel,
    selection: Sequence[str] = EVERYTHING,
    *,
    parts: Sequence[str] | None = None,
    name: str = "lora",
    dropout: float = 0.0,
    seed: int = 1,
) -> Adapter:
    """Puts an adapter of the table into the parts of a model, all of them by default."""
    targets = {part: model.lora_targets(part, selection) for part in parts or model.parts}
    return ADAPTERS.get(name).load().inject(model, targets, rank=4, alpha=6.0, dropout=dropout, seed=seed)


def randomise(adapter: Adapter) -> Adapter:
    """Gives every weight values as after a training that changed much."""
    generator = torch.Generator().manual_seed(7)
    for tensor in adapter.tensors().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.15)
    return adapter


def outputs(model: TrainableModel) -> dict[str, Tensor]:
    """Returns all that a model makes of two captions and pictures: text encodings, and the denoiser's losses."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1
    pictures = model.encode_pictures(pixels)
    texts = model.encode_texts(CAPTIONS)
    sizes = model.size_condition((64, 64), (0, 0), (64, 64))
    examples = [{name: tensor[item] for name, tensor in {**pictures, **texts}.items()} | sizes for item in range(len(CAPTIONS))]
    draws = [model.make_draws(example, torch.Generator().manual_seed(item), Objective()) for item, example in enumerate(examples)]
    losses = model.losses(
        model.collate(examples), {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}, Objective()
    )
    return {**texts, "losses": losses}


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> None:
    """Compares outputs, relative to the largest value of each."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        difference = (tensor.float() - second[name].float()).abs().max().item() / tensor.float().abs().max().item()
        assert difference < tolerance, f"{name}: {difference}"
