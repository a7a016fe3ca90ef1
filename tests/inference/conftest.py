"""A loaded tiny model of each family, shared by the tests of a module, which must leave it as it was; and LoRA files for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_trainer.adapters.export import save_lora, webui_tensors
from lora_trainer.adapters.lora import LoraAdapter
from lora_trainer.models.family import ModelSettings
from lora_trainer.models.table import load_model
from tests import tiny

MakeLora = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tiny.make_checkpoint(family, tmp_path_factory.mktemp(family)) for family in tiny.FAMILIES}


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def model(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Any:
    return load_model(ModelSettings(checkpoints[request.param]))


@pytest.fixture(scope="module")
def sd1(checkpoints: dict[str, Path]) -> Any:
    return load_model(ModelSettings(checkpoints["sd1"]))


@pytest.fixture(scope="module")
def sdxl(checkpoints: dict[str, Path]) -> Any:
    return load_model(ModelSettings(checkpoints["sdxl"]))


@pytest.fixture
def make_lora(tmp_path: Path) -> MakeLora:
    """Writes a LoRA file as an export does, of random weights that show, and returns it."""

    def make(model: Any, name: str = "ink", selection: Sequence[str] = ("attention_ff", "conv"), seed: int = 1) -> Path:
        adapter = inject(model, selection, seed)
        try:
            return save_lora(tmp_path / f"{name}.safetensors", webui_tensors(adapter, model), model.metadata(), torch.float32)
        finally:
            adapter.remove()

    return make


def inject(model: Any, selection: Sequence[str] = ("attention_ff",), seed: int = 1, dropout: float = 0.0) -> LoraAdapter:
    """Returns an adapter with weights as if it had been trained, in every part of the model."""
    targets = {part: model.lora_targets(part, selection) for part in model.parts}
    adapter = LoraAdapter.inject(model, targets, rank=4, alpha=8.0, dropout=dropout, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in adapter.tensors().items():
        if name.endswith("up"):
            tensor.normal_(0, 0.05, generator=generator)
    return adapter


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """Returns copies of every weight by part and name."""
    return {f"{part}.{name}": value.clone() for part, root in model.parts.items() for name, value in root.state_dict().items()}


def assert_same_weights(model: Any, before: dict[str, torch.Tensor]) -> None:
    now = weights_of(model)
    assert now.keys() == before.keys()
    assert [name for name in now if not torch.equal(now[name], before[name])] == []
