"""The LoRAs of a folder as people look at them, and one made ready with a chosen weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_trainer.adapters.container import read_header
from lora_trainer.adapters.export import save_lora
from lora_trainer.adapters.library import TRASH_FOLDER, list_trash, read_card, throw_away
from lora_trainer.adapters.shelf import find_preview, list_shelf, look_at, pick, set_preview
from lora_trainer.errors import AdapterError
from lora_trainer.run_folder import RunFolder

PNG = b"\x89PNG one"
KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def make(path: Path, strength: float = 1.0, **metadata: str) -> Path:
    tensors = {f"{KEY}.lora_down.weight": torch.ones(4, 768), f"{KEY}.lora_up.weight": torch.full((320, 4), strength)}
    facts = {"ss_base_model_version": "sd_v1", "ss_network_dim": "4", "ss_num_train_images": "24"}
    tags = {"ss_tag_frequency": json.dumps({"ink": {"boat": 3, "lake": 9}})}
    return save_lora(path, tensors | {f"{KEY}.alpha": torch.tensor(4.0)}, facts | tags | metadata)


def test_what_header_and_card_tell(tmp_path: Path) -> None:
    path = make(tmp_path / "styles" / "ink.safetensors")
    path.with_suffix(".json").write_text('{"activation text": "guofeng", "preferred weight": 0.7}', encoding="utf-8")
    path.with_suffix(".preview.png").write_bytes(PNG)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    make(tmp_path / "gone.safetensors")
    throw_away(tmp_path / "gone.safetensors", tmp_path)
    items = {item.name: item for item in list_shelf(tmp_path)}
    assert set(items) == {"ink", "bad"}
    ink = items["ink"]
    assert (ink.bases, ink.stated, ink.rank, ink.num_pictures, ink.tags) == (("SD1",), "SD1", "4", 24, ("lake", "boat"))
    assert (ink.card.activation_text, ink.card.preferred_weight, ink.preview) == (
        "guofeng",
        0.7,
        path.with_suffix(".preview.png"),
    )
    assert ink.file_bytes == path.stat().st_size and not ink.error
    assert "bad.safetensors" in items["bad"].error


def test_a_picked_weight_and_picture_are_on_the_card(tmp_path: Path) -> None:
    path = make(tmp_path / "ink.safetensors")
    path.with_suffix(".json").write_text('{"activation text": "guofeng", "preferred weight": 0.7, "mine": 1}', encoding="utf-8")
    path.with_suffix(".preview.png").write_bytes(b"an older one")
    before = path.read_bytes()
    assert pick(path, 0.5, PNG, tmp_path) == path
    assert read_card(path).preferred_weight == 0.5 and read_card(path).activation_text == "guofeng"
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["mine"] == 1
    assert find_preview(path) == path.with_suffix(".png") and path.with_suffix(".png").read_bytes() == PNG
    assert path.read_bytes() == before
    assert [old.read_bytes() for old in (tmp_path / TRASH_FOLDER).rglob("*.png")] == [b"an older one"]
    assert list_trash(tmp_path) == []  # the LoRA itself is not in it


def test_a_picked_step_takes_the_place_of_what_its_run_put_there(tmp_path: Path) -> None:
    run, loras = RunFolder(tmp_path / "runs" / "ink"), tmp_path / "Lora"
    step = make(run.step_path("ink", 100), 0.5, **{"modelspec.trigger_phrase": "guofeng"})
    final = make(loras / "ink.safetensors")
    run.update_job(published=["ink.safetensors"])
    assert pick(step, 0.9, PNG, loras) == final
    assert look_at(final).card.preferred_weight == 0.9 and read_card(final).activation_text == "guofeng"
    hashes = [read_header(path).metadata["sshs_model_hash"] for path in (step, final)]
    assert hashes[0] == hashes[1] and read_header(final).metadata["ss_output_name"] == "ink"
    assert {"ink.safetensors", "ink.json"} <= set(run.read_job()["published"]) and step.is_file()


def test_a_step_does_not_take_the_place_of_another_s_file(tmp_path: Path) -> None:
    step, loras = make(tmp_path / "run" / "ink-step00000100.safetensors"), tmp_path / "Lora"
    other = make(loras / "ink.safetensors")
    before = other.read_bytes()
    assert pick(step, 0.9, PNG, loras).name == "ink-2.safetensors"
    assert other.read_bytes() == before


def test_a_preview_is_a_png(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a PNG"):
        set_preview(make(tmp_path / "ink.safetensors"), b"GIF89a", tmp_path)
