"""A run may start from a LoRA file: before the first step its effect is the file's, by the WebUI's rules too."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from lora_trainer.adapters.adapter import Adapter
from lora_trainer.adapters.export import save_lora, webui_tensors
from lora_trainer.adapters.start import read_start
from lora_trainer.adapters.table import ADAPTERS
from lora_trainer.errors import AdapterError
from lora_trainer.models.family import TrainableModel
from tests.adapters.models import EVERYTHING, inject, load, outputs, randomise
from tests.adapters.webui_rules import apply_lora
from tests.tiny import FAMILIES, make_checkpoint

pytestmark = pytest.mark.hosts
RANK, ALPHA = 4, 6.0  # of `inject`
PARTIAL = ("q_proj", "v_proj")  # leaves OpenCLIP's attention to be completed by pairs of zeros


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("sd1", tmp_path_factory.mktemp("sd1"))


def write(path: Path, model: TrainableModel, adapter: Adapter, dtype: torch.dtype = torch.float32) -> Path:
    return save_lora(path, webui_tensors(adapter, model), model.metadata(), dtype)


def start(
    base: Path, file: Path, *, alpha: float = ALPHA, selection: tuple[str, ...] = PARTIAL
) -> tuple[TrainableModel, Adapter]:
    model = load(base)
    targets = {part: model.lora_targets(part, selection) for part in model.parts}
    tensors = read_start(file, model, targets, rank=RANK)
    adapter = ADAPTERS.get("lora").load().inject(model, targets, rank=RANK, alpha=alpha, dropout=0.0, seed=9)
    adapter.load_host_tensors(tensors)
    return model, adapter


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("alpha", [ALPHA, 1.0])
def test_the_effect_at_step_0_is_the_files(tmp_path: Path, family: str, alpha: float) -> None:
    base = make_checkpoint(family, tmp_path)
    model = load(base)
    file = write(tmp_path / "first.safetensors", model, randomise(inject(model, PARTIAL)))
    again, adapter = start(base, file, alpha=alpha)
    with torch.no_grad():
        expected, found = outputs(model), outputs(again)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
    checkpoint = safetensors.torch.load(base.read_bytes())
    checkpoint = {key: tensor.float() for key, tensor in checkpoint.items()}
    exported = webui_tensors(adapter, again)
    mine, given = (apply_lora(checkpoint, lora) for lora in (exported, safetensors.torch.load(file.read_bytes())))
    assert not mine.dropped
    for key, tensor in given.tensors.items():
        torch.testing.assert_close(mine.tensors[key], tensor, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(tensor, checkpoint[key]) for key, tensor in mine.tensors.items())


def test_a_file_without_alpha_acts_with_1_and_linear_may_be_written_as_convolution(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    tensors = webui_tensors(randomise(inject(model, PARTIAL)), model)
    tensors = {
        key: tensor[..., None, None] if tensor.ndim == 2 else tensor for key, tensor in tensors.items() if "alpha" not in key
    }
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
    _, adapter = start(checkpoint, tmp_path / "a.safetensors", alpha=2.0)
    for name, own in adapter.host_tensors():
        key = model.webui_key(*name)
        expected = (tensors[f"{key}.lora_up.weight"].flatten(1) @ tensors[f"{key}.lora_down.weight"].flatten(1)).float()
        found = own["lora_up.weight"] @ own["lora_down.weight"] * own["alpha"] / RANK
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_more_layers_than_the_file_has_start_without_effect(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    file = write(tmp_path / "first.safetensors", model, randomise(inject(model, PARTIAL)))
    again, _ = start(checkpoint, file, selection=EVERYTHING)
    with torch.no_grad():
        expected, found = outputs(model), outputs(again)
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_listed(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint)
    tensors = webui_tensors(randomise(inject(model, ("attention",))), model)
    wide = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({**tensors, wide: torch.ones(RANK, 7)}, path)
    fresh = load(checkpoint)
    targets = {"unet": fresh.lora_targets("unet", ("to_q",))}
    with pytest.raises(AdapterError, match=r"of its layers are not trained here.* 1 of its layers do not fit: .*from 7 to 32"):
        read_start(path, fresh, targets, rank=RANK)
    with pytest.raises(AdapterError, match=r"_to_q has rank 4, lora_rank is 8"):
        read_start(path, fresh, targets, rank=8)
    assert set(read_start_of(fresh, tensors, tmp_path)) == set(read_start_of(fresh, tensors, tmp_path, "text_encoder"))


def read_start_of(model: TrainableModel, tensors: dict[str, torch.Tensor], folder: Path, *silenced: str) -> dict[object, object]:
    """Reads the UNet's layers of a file whose text layers are there as pairs of zeros, or not at all."""
    silent = {key: torch.zeros_like(tensor) for key, tensor in tensors.items() if key.startswith("lora_te")} if silenced else {}
    own = {key: tensor for key, tensor in tensors.items() if key.startswith("lora_unet")}
    safetensors.torch.save_file({**own, **silent}, folder / "b.safetensors")
    targets = {"unet": model.lora_targets("unet", ("attention",))}
    return dict(read_start(folder / "b.safetensors", model, targets, rank=RANK))
