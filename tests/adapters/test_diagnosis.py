"""Each reason for which a LoRA does nothing, or something else, is found and comes with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lora_trainer.adapters.diagnosis import diagnose
from lora_trainer.adapters.export import save_lora
from lora_trainer.errors import Problem
from lora_trainer.models.webui import webui_layers
from tests.adapters.files import SD1_METADATA, UNET_MODULE, pair
from tests.tiny import make_checkpoint

pytestmark = pytest.mark.hosts
SDXL_METADATA = {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("sd1", tmp_path_factory.mktemp("base"))


def fitting(base: Path) -> dict[str, Tensor]:
    """Returns a pair for one layer of the base."""
    outputs, inputs = webui_layers(base)[UNET_MODULE]
    return pair(UNET_MODULE, out_features=outputs, in_features=inputs)


def errors(problems: list[Problem]) -> list[str]:
    return [str(problem) for problem in problems if problem.severity == "error"]


def test_nothing_is_said_of_a_good_file(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "ink.safetensors", fitting(base), SD1_METADATA)
    assert diagnose(path, base, tmp_path, listed_at=path.stat().st_mtime + 1) == []
    assert diagnose(path) == []


def test_a_base_of_another_kind(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "xl.safetensors", pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), SDXL_METADATA)
    (error,) = errors(diagnose(path, base))
    assert "xl.safetensors is for SDXL" in error and "loaded is SD1" in error and "Load a base of the kind SDXL" in error


def test_keys_that_match_nothing(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "ink.safetensors", pair("lora_unet_no_such_layer", in_features=8), SD1_METADATA)
    (error,) = errors(diagnose(path, base))
    assert "1 of 1 are not in this base (first: lora_unet_no_such_layer)" in error


def test_zero_weights(base: Path, tmp_path: Path) -> None:
    tensors = fitting(base)
    tensors[f"{UNET_MODULE}.lora_up.weight"].zero_()
    (error,) = errors(diagnose(save_lora(tmp_path / "ink.safetensors", tensors, SD1_METADATA), base))
    assert "multiplies to zero" in error and "look at the loss" in error


def test_keys_of_another_form(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "ink.safetensors", {"base_model.model.to_q.lora_A.weight": torch.ones(4, 4)}, {})
    (error,) = errors(diagnose(path, base, tmp_path))
    assert "PEFT" in error and "kohya's key names" in error


def test_two_files_of_one_alias(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "ink.safetensors", fitting(base), SD1_METADATA)
    namesake = save_lora(tmp_path / "copies" / "ink.safetensors", fitting(base), SD1_METADATA)
    (error,) = errors(diagnose(path, base, tmp_path))
    assert str(Path("copies", "ink.safetensors")) in error and "the same name" in error and "Rename one" in error
    namesake.rename(tmp_path / "other.safetensors")  # it still calls itself "ink"
    (error,) = errors(diagnose(path, base, tmp_path))
    assert "other.safetensors calls itself 'ink'" in error and "Rename one of them here" in error


def test_a_card_that_is_hidden_by_metadata(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "ink.safetensors", fitting(base), SDXL_METADATA)
    (hidden,) = diagnose(path, base)
    assert (hidden.field, hidden.severity) == ("card", "warning")
    assert "hides it while a base of the kind SD1 is loaded, since its metadata say SDXL" in hidden.message
    assert "Repair its metadata" in hidden.hint
    path.with_suffix(".json").write_text(json.dumps({"sd version": "SD1"}), encoding="utf-8")
    assert diagnose(path, base) == []


def test_a_card_that_says_another_class(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "ink.safetensors", fitting(base), SD1_METADATA)
    path.with_suffix(".json").write_text(json.dumps({"sd version": "SDXL"}), encoding="utf-8")
    (problem,) = diagnose(path, base)
    assert (problem.field, problem.severity) == ("card", "warning")
    assert "its card says 'sd version' SDXL" in problem.message and "Set 'sd version' on the card" in problem.hint


def test_a_file_outside_the_folder_or_replaced_since(base: Path, tmp_path: Path) -> None:
    path = save_lora(tmp_path / "elsewhere" / "ink.safetensors", fitting(base), SD1_METADATA)
    (error,) = errors(diagnose(path, base, tmp_path / "lora"))
    assert "is not in" in error and "Move it there" in error
    (problem,) = diagnose(path, base, listed_at=path.stat().st_mtime - 10)
    assert problem.severity == "warning" and "keeps the old weights" in problem.message and "Draw one picture" in problem.hint


def test_files_that_cannot_be_read_are_findings_too(base: Path, tmp_path: Path) -> None:
    (problem,) = diagnose(tmp_path / "nowhere.safetensors", base)
    assert "nowhere.safetensors is not a file" in problem.message
    good = save_lora(tmp_path / "ink.safetensors", fitting(base), SD1_METADATA)
    (problem,) = diagnose(good, tmp_path / "no-base.safetensors")
    assert problem.field == "base" and "does not exist" in problem.message
